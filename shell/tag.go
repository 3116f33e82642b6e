package shell

// idleSlack is above all tags.
const idleSlack = 2*defaultSlack + 1

// Idle tells whether a timer slack is that of a shell between commands.
func Idle(slack int64) bool { return slack == idleSlack }

// Tag is the timer slack, in nanoseconds, of all processes that the command which
// ran last started, and of none else; 0 where it cannot be set.
func (s *Shell) Tag() int64 {
	if s.group == nil {
		return 0
	}
	return s.group.slack
}
