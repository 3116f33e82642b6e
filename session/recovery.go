package session

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"deployx/snapshot"
)

// OnInterrupted says what becomes of a command that was cut off: by a crash of
// deployx, or of the host.
type OnInterrupted string

// The policies.
const (
	KeepInterrupted     OnInterrupted = "keep"     // recorded as unfinished, to be rolled back at will
	RollbackInterrupted OnInterrupted = "rollback" // rolled back before anything else is done
)

// Recovery tells what Open or a later operation found undone.
type Recovery struct {
	Unfinished snapshot.ID // a command that was cut off
	RolledBack bool        // and has been rolled back (RollbackInterrupted)
	Reshown    bool        // the tree did not show what the record says
	Committing snapshot.ID // a commit through this entry was not finished
	Stale      []snapshot.Holder
}

// RecoveryNote is the file of the last one, for status. It is for people: nothing
// depends on it, and a power cut may take it.
type RecoveryNote struct {
	Time       time.Time   `json:"time"`
	Unfinished snapshot.ID `json:"unfinished,omitempty"`
	Command    string      `json:"command,omitempty"`
	RolledBack bool        `json:"rolled_back,omitempty"`
	Reshown    bool        `json:"reshown,omitempty"`
}

func (s *Session) recoveryFile() string { return filepath.Join(s.o.Tree.Store, "recovered") }

// settleCut ends a command that was cut off, and by the policy rolls it back.
// reshown tells that the tree had to be shown again.
func (s *Session) settleCut(ctx context.Context, reshown bool) error {
	cut, ok, err := s.rec.Running()
	if err != nil {
		return err
	}
	found := RecoveryNote{Time: time.Now(), Reshown: reshown}
	if ok {
		cut.Unfinished, cut.ExitCode = true, -1
		if cut, err = s.finish(ctx, cut, ""); err != nil {
			return err
		}
		s.found.Unfinished = cut.ID
		found.Unfinished, found.Command = cut.ID, cut.Command
	}
	if s.o.OnInterrupted == RollbackInterrupted && !s.undid {
		s.undid = true
		s.undoCut(ctx, &found)
	}
	if found.Unfinished != "" || found.Reshown {
		s.tellRecovery(found)
	}
	return nil
}

// undoCut rolls the newest command back if it was cut off, whoever recorded
// that, unless others would go with it.
func (s *Session) undoCut(ctx context.Context, found *RecoveryNote) {
	top, err := s.newestCommand()
	if err != nil || !top.Unfinished {
		s.afterwards("look for a command that was cut off", err)
		return
	}
	found.Unfinished, found.Command = top.ID, top.Command
	dropped, err := s.rec.Above(top.ID)
	if err == nil && dropped[len(dropped)-1].ID != top.ID {
		err = fmt.Errorf("it shares its layer with %s", dropped[len(dropped)-1].ID)
	}
	if err == nil {
		_, err = s.rollback(ctx, Target{ID: top.ID}, RollbackOptions{})
	}
	if err != nil {
		s.o.Warn(fmt.Sprintf("the command that was cut off, %s, is kept, for it cannot be rolled back: %v", top.ID, err))
		return
	}
	found.RolledBack, s.found.RolledBack, s.found.Unfinished = true, true, top.ID
}

func (s *Session) newestCommand() (snapshot.Snapshot, error) {
	for e, err := range s.rec.Chain(s.rec.Head().Snapshot) {
		if err != nil || e.Kind == snapshot.KindCommand {
			return e, err
		}
	}
	return snapshot.Snapshot{}, nil
}

func (s *Session) tellRecovery(r RecoveryNote) {
	if s.o.Recovered != nil {
		s.o.Recovered(s.found)
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(s.recoveryFile(), append(b, '\n'), 0o600)
	}
	s.afterwards("note what was recovered", err)
}

// lastRecovery is nil if there was none.
func (s *Session) lastRecovery() *RecoveryNote {
	b, err := os.ReadFile(s.recoveryFile())
	var r RecoveryNote
	if err != nil || json.Unmarshal(b, &r) != nil {
		return nil
	}
	return &r
}
