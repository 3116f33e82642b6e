package shell

// Tag is the timer slack, in nanoseconds, of all processes that the command which
// ran last started, and of none else; 0 where it cannot be set.
func (s *Shell) Tag() int64 {
	if s.group == nil {
		return 0
	}
	return s.group.slack
}
