package agent

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The audit log turns over at auditBytes, and auditKeep full ones are kept.
const (
	auditBytes = 64 << 20
	auditKeep  = 8
)

// audit is the append-only log of who asked what, when, and with what result:
// one JSON object a line. Commands stand in it as they were sent, so it is for
// root's eyes (0600).
type audit struct {
	path  string
	limit int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

// auditLine is one line: a request as it came, or what became of one.
type auditLine struct {
	Time       time.Time       `json:"time"`
	What       string          `json:"what"` // "request" or "result"
	Event      string          `json:"event,omitempty"`
	Backend    string          `json:"backend,omitempty"`
	Connection string          `json:"connection,omitempty"`
	RequestID  string          `json:"request_id,omitempty"` // of a signed request
	CommandID  string          `json:"command_id,omitempty"`
	BatchID    string          `json:"batch_id,omitempty"`
	SnapshotID string          `json:"snapshot_id,omitempty"`
	Tree       string          `json:"tree,omitempty"`
	Command    string          `json:"command,omitempty"`
	Commands   json.RawMessage `json:"commands,omitempty"`
	OK         bool            `json:"ok"`
	ExitCode   *int            `json:"exit_code,omitempty"`
	Code       string          `json:"code,omitempty"`
	Message    string          `json:"message,omitempty"`
}

func openAudit(dir string, limit int64) (*audit, error) {
	a := &audit{path: filepath.Join(dir, "audit.log"), limit: limit}
	if a.limit == 0 {
		a.limit = auditBytes
	}
	return a, a.open()
}

func (a *audit) open() error {
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	a.f, a.size = f, fi.Size()
	return nil
}

// write adds a line, in one write(2), so that it is whole or not there.
func (a *audit) write(l auditLine) error {
	l.Time = time.Now().UTC()
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size > a.limit {
		if err := a.turn(); err != nil {
			return err
		}
	}
	n, err := a.f.Write(append(b, '\n'))
	a.size += int64(n)
	return err
}

// turn renames audit.log to audit.log.1, and so on. The caller holds mu.
func (a *audit) turn() error {
	for i := auditKeep; i > 0; i-- {
		from := a.path
		if i > 1 {
			from += "." + strconv.Itoa(i-1)
		}
		if err := os.Rename(from, a.path+"."+strconv.Itoa(i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	old := a.f
	return errors.Join(a.open(), old.Close())
}

func (a *audit) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.f.Close()
}
