package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestJournalSurvivesEveryCut(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir, limits{})
	if err != nil {
		t.Fatal(err)
	}
	k := key{kindCommand, "c"}
	if _, wait, err := j.see(k, json.RawMessage(`{"command_id":"c"}`), false); err != nil || wait() != nil {
		t.Fatal(err)
	}
	e := &event{key: k, name: "command_completed", lane: "l", final: true, payload: json.RawMessage(`{"x":1}`)}
	if wait, err := j.post(k, e); err != nil || wait() != nil {
		t.Fatal(err)
	}
	if err := j.acked(e); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		zeros := cut % 2 * 5000 // behind the cut, as they stand there while the file is open
		d := t.TempDir()
		writeFile(t, filepath.Join(d, "journal"), string(whole[:cut])+strings.Repeat("\x00", zeros), 0o600)
		j, err := openJournal(d, limits{})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		unfinished, err := j.unfinished()
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		state := fmt.Sprint(j.knows(k), len(unfinished), len(j.undelivered()))
		if state != "false 0 0" && state != "true 1 0" && state != "true 0 1" && state != "true 0 0" {
			t.Errorf("cut at %d: %s", cut, state)
		}
		// It can be written on.
		if _, wait, err := j.see(key{kindCommand, "after"}, json.RawMessage(`{}`), false); err != nil || wait() != nil {
			t.Errorf("cut at %d: %v", cut, err)
		}
		if err := j.close(); err != nil {
			t.Error(err)
		}
		j, err = openJournal(d, limits{})
		if err != nil || !j.knows(key{kindCommand, "after"}) || j.damaged != 0 {
			t.Errorf("cut at %d: %d damaged, %v", cut, j.damaged, err)
		}
		if err := j.close(); err != nil {
			t.Error(err)
		}
	}
}

// A power cut may keep what was written later and lose what was written before
// it: zeros stand in its place. What is behind them must never come back, for
// it may contradict what is written there next.
func TestJournalForgetsWhatIsBehindAHole(t *testing.T) {
	dir := t.TempDir()
	see := func(j *journal, id string) (end int64) {
		t.Helper()
		if _, wait, err := j.see(key{kindCommand, id}, json.RawMessage(`{}`), false); err != nil || wait() != nil {
			t.Fatal(err)
		}
		return j.size
	}
	open := func() *journal {
		t.Helper()
		j, err := openJournal(dir, limits{})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := open()
	from := see(j, "kept")
	to := see(j, "lost")
	see(j, "behind")
	name := filepath.Join(dir, "journal")
	if fi, err := os.Stat(name); err != nil || fi.Size() <= j.size {
		t.Errorf("no room was made: %v, %v", fi, err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil || bytes.ContainsRune(b, 0) {
		t.Fatalf("zeros are left in a journal that was closed: %v", err)
	}
	clear(b[from:to])
	writeFile(t, name, string(b), 0o600)
	for i := range 2 {
		j = open()
		if j.damaged != 0 || !j.knows(key{kindCommand, "kept"}) || j.knows(key{kindCommand, "lost"}) || j.knows(key{kindCommand, "behind"}) {
			t.Errorf("%d damaged; knows %v", j.damaged, j.order)
		}
		see(j, fmt.Sprint("after", i))
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestJournalSkipsADamagedLine(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(dir, limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, wait, err := j.see(key{kindCommand, fmt.Sprint(i)}, json.RawMessage(`{}`), false); err != nil || wait() != nil {
			t.Fatal(err)
		}
	}
	at := j.ids[key{kindCommand, "1"}].seen.at
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "journal")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[at+20] ^= 1
	writeFile(t, name, string(b), 0o600)
	if j, err = openJournal(dir, limits{}); err != nil {
		t.Fatal(err)
	}
	defer j.close() //nolint:errcheck // only read
	if j.damaged != 1 || !j.knows(key{kindCommand, "0"}) || !j.knows(key{kindCommand, "2"}) {
		t.Errorf("%d damaged", j.damaged)
	}
}

func TestNoncesOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		j, err := openJournal(dir, limits{})
		if err != nil {
			t.Fatal(err)
		}
		fresh, wait, err := j.nonce("n", time.Now())
		if err != nil || fresh != (i == 0) {
			t.Fatalf("round %d: fresh %v, %v", i, fresh, err)
		}
		if wait != nil && wait() != nil {
			t.Fatal("not on disk")
		}
		if err := j.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A write that fails leaves the journal as it was; here the disk is full.
func TestJournalOnAFullDisk(t *testing.T) {
	j, err := openJournal(t.TempDir(), limits{})
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	real := j.f
	j.f = full
	k := key{kindCommand, "c"}
	if _, _, err := j.see(k, json.RawMessage(`{}`), false); err == nil {
		t.Fatal("noted on a full disk")
	}
	if j.knows(k) {
		t.Error("it is known though it was not noted")
	}
	j.f = real
	if _, wait, err := j.see(k, json.RawMessage(`{}`), false); err != nil || wait() != nil {
		t.Errorf("when there is room again: %v", err)
	}
	if err := full.Close(); err != nil {
		t.Error(err)
	}
	if err := j.close(); err != nil {
		t.Error(err)
	}
}
