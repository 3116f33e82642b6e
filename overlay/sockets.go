package overlay

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"

	"deployx/snapshot"
)

// sockets finds unix sockets that are bound below the tree: a client would
// look for them in the new view and find a dead file. The kernel lists them by
// the path they were bound with (proc_net(5)); one bound by a relative path
// belongs to a process whose working directory is a hold already.
func (s *scanner) sockets() error {
	b, err := os.ReadFile("/proc/net/unix")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	bound := map[string]string{} // "socket:[inode]" → path
	for line := range bytes.Lines(b) {
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 8)
		if i := strings.Index(string(line), " /"); i >= 0 && len(f) == 8 {
			path := strings.TrimSuffix(string(line[i+1:]), "\n")
			if within(path, s.tree) && !s.sub.hold(path) {
				fields := strings.Fields(string(line[:i]))
				bound["socket:["+fields[len(fields)-1]+"]"] = path
			}
		}
	}
	if len(bound) == 0 {
		return nil
	}
	return s.owners(bound)
}

func (s *scanner) owners(bound map[string]string) error {
	pids, err := processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		for _, link := range descriptors(pid) {
			target, err := os.Readlink(link)
			if err != nil || bound[target] == "" {
				continue
			}
			st, err := statLink(link)
			if err != nil {
				continue
			}
			s.hard = append(s.hard, hold{
				Holder: snapshot.Holder{PID: pid, Name: comm(pid), How: "bound unix socket", Path: bound[target]},
				link:   link, stat: st, info: fdInfo(link),
			})
		}
	}
	return nil
}
