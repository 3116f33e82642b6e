package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// systemd is a directory of units, and the systemd that reads it, if it is live.
type systemd struct {
	dir  string
	live bool
}

// need refuses a host that another init runs.
func (s systemd) need(what, hint string) error {
	if !s.live {
		return nil
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil { // sd_booted(3)
		return nil
	}
	return &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("this host was not booted by systemd, for which %s is", what), Hint: hint,
	}
}

// What write did with a unit.
const (
	written   = "written"
	rewritten = "rewritten: it had changed"
	unchanged = "is as it should be"
)

// write writes a unit and enables it. A file of that name that we did not write
// is refused and stays.
func (s systemd) write(u unit) (what string, err error) {
	path := filepath.Join(s.dir, u.name)
	old, err := s.owned(u.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		what = written
	case err != nil:
		return "", err
	case old == u.text:
		return unchanged, s.enable(u)
	default:
		what = rewritten
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", err
	}
	if err := durable.Stage(path, []byte(u.text), true); err != nil {
		return "", err
	}
	if err := os.Chmod(path+".tmp", 0o644); err != nil { // units are for everybody to read
		return "", errors.Join(err, os.Remove(path+".tmp"))
	}
	if err := durable.Publish(path); err != nil {
		return "", err
	}
	return what, s.enable(u)
}

// owned reads a unit that we wrote.
func (s systemd) owned(name string) (string, error) {
	path := filepath.Join(s.dir, name)
	b, err := os.ReadFile(path)
	if err == nil && !strings.HasPrefix(string(b), ours) {
		return "", &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%s was not written by deployx install", path),
			Hint: "move it away; what it should add to ours goes into a drop-in (systemctl edit)",
		}
	}
	return string(b), err
}

// link is what systemctl enable makes of WantedBy=: a link in the target's .wants
// directory.
func (s systemd) link(name, target string) string {
	return filepath.Join(s.dir, target+".wants", name)
}

func (s systemd) enable(u unit) error {
	if u.wantedBy == "" {
		return nil
	}
	link := s.link(u.name, u.wantedBy)
	if to, err := os.Readlink(link); err == nil && to == "../"+u.name {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink("../"+u.name, link); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(link))
}

// remove disables and removes a unit that we wrote; had is false if it is not
// there.
func (s systemd) remove(name, wantedBy string) (had bool, err error) {
	if wantedBy != "" {
		link := s.link(name, wantedBy)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		_ = os.Remove(filepath.Dir(link)) // if it is empty: others have links there
	}
	err = os.Remove(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = durable.SyncDir(s.dir)
	}
	return err == nil, err
}

func (s systemd) reload() error { return s.call("daemon-reload") }

// call is systemctl, if there is a systemd to talk to.
func (s systemd) call(args ...string) error {
	if !s.live {
		return nil
	}
	out, err := exec.Command("systemctl", args...).CombinedOutput() //nolint:gosec // our words
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
