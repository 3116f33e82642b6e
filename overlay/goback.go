package overlay

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// Going back. When somebody opened a file of the old view for writing just before a
// swap and keeps it open, the old view comes back, for two views that both take
// writes would split him from all others. What these have written to the new view
// until then is carried into the old one, through its mount, as they would have done
// it there: see docs/design.md, "Going back".

// backNote is kept in the new layer's directory from before the old view is shown
// again until all is carried: who is killed meanwhile is followed by a Show of the
// same view, which finishes it, or stays where that was not left yet.
type backNote struct {
	To    snapshot.LayerID   // what the tree shows again
	Below []snapshot.LayerID // what the new layer stands on
	Since stamp              // the new view had not been shown yet
	// Seen is what the old view had of the files that both views have just before it
	// was shown again: then only who had opened a file there before could change it.
	Seen    map[string]seen
	Steps   []backStep // to be carried, once the new layer is frozen
	Cleared bool       // what goes, or goes elsewhere, is out of the way
	Writing string     // a file that is being written over in place
}

type goBack struct {
	d     *Driver
	ctx   context.Context
	open  snapshot.LayerID
	note  backNote
	again bool // it was cut off before

	r    restore
	from *os.File // the tree's root in the new layer
	held holdings
	due  time.Time // when these are looked for again
	left []string  // could not be carried, and why
}

func (d *Driver) backFile(open snapshot.LayerID) string { return d.dir(open, "back") }

// goBack shows back, a clone of the old view, instead of m, the one of v, and returns
// why. What cannot be carried is kept aside and named.
func (d *Driver) goBack(ctx context.Context, cause error, back, m *os.File, v snapshot.View, note backNote) error {
	g := goBack{d: d, ctx: context.WithoutCancel(ctx), open: v.Open, note: note}
	err := g.begin()
	crash.Point("overlay.back.noted")
	if e := d.bringBack(back); e != nil {
		return errors.Join(cause, err, e)
	}
	crash.Point("overlay.back.shown")
	cause = d.busy(ctx, cause) // who holds it is found while the tree shows it
	if err == nil {
		err = whileBusy(freezePatience, func() error { return freeze(m) })
	}
	return errors.Join(cause, g.finish(err))
}

// begin looks at what has been written so far. What is first written between this and
// the moment in which the old view is seen, and in that too, counts as changed in both.
func (g *goBack) begin() error {
	steps, err := g.plan()
	if err != nil {
		return err
	}
	g.note.Seen = map[string]seen{}
	for _, s := range steps {
		if s.File {
			g.note.Seen[s.Path] = s.Seen
		}
	}
	file, b, err := g.encoded()
	if err != nil {
		return err
	}
	return durable.Replace(file, b) // it need not last: nothing has been carried yet
}

// save makes the note last.
func (g *goBack) save() error {
	file, b, err := g.encoded()
	if err != nil {
		return err
	}
	return durable.Write(file, b)
}

func (g *goBack) encoded() (file string, b []byte, err error) {
	var buf bytes.Buffer
	err = gob.NewEncoder(&buf).Encode(g.note)
	return g.d.backFile(g.open), buf.Bytes(), err
}

// finish carries what is in the new layer. Whatever hinders it, or some of it, is
// told, with the place where the layer is kept then.
func (g *goBack) finish(err error) error {
	v := snapshot.View{Layers: g.note.Below, Open: g.open}
	dirty, e := g.d.Dirty(g.ctx, v)
	if e == nil && !dirty {
		return g.giveUp()
	}
	// What is there is carried even if more may come.
	if e = errors.Join(e, g.carryAll()); e == nil && err == nil && len(g.left) == 0 {
		return g.giveUp()
	}
	return g.keep(errors.Join(err, e, g.putBack()))
}

// giveUp gives up the layer, and the note with it: without that it would be shown above
// the old view, with what others have written over there since.
func (g *goBack) giveUp() error {
	defer crash.Point("overlay.back.settled")
	return g.d.toTrash(g.d.dir(g.open, ""))
}

// keep puts the layer where nothing gives it up, and says so.
func (g *goBack) keep(cause error) error {
	to := filepath.Join(g.d.layers, "aside", string(g.open))
	if err := os.Rename(g.d.dir(g.open, ""), to); err != nil {
		return errors.Join(cause, err)
	}
	os.Remove(filepath.Join(to, "back")) //nolint:errcheck // nobody looks for it there
	why := g.left
	switch {
	case errors.Is(cause, unix.EBUSY):
		why = append(why, "a process still writes to a file that it opened then")
	case cause != nil:
		why = append(why, cause.Error())
	}
	g.d.merging.say(fmt.Sprintf("a view of %q was shown for a moment and had to be taken back, for a process had just opened a file of the old one;"+
		" of what others wrote meanwhile this is not in the tree, but kept in %s: %s", g.d.tree, filepath.Join(to, "u", g.d.name), strings.Join(why, ", ")))
	return durable.SyncFilesystem(g.d.layers)
}

// tellHidden names files that a surprised writer has written to after others had
// copied them up in the view that is shown now: what he wrote is below, out of view.
func (d *Driver) tellHidden(ctx context.Context, v snapshot.View, note backNote) {
	g := goBack{d: d, ctx: ctx, open: v.Open, note: note}
	steps, err := g.plan()
	if err != nil {
		d.merging.say("look for what was written just before a swap: " + err.Error())
	}
	for _, s := range steps {
		if s.File && s.Seen.Same && !s.Seen.Whole {
			d.merging.say(fmt.Sprintf("%q was written to by a process that had opened it just before a view of %q was shown, and by another that opened it"+
				" afterwards: the tree shows what the second wrote; what the first did is in %s", s.Path, d.tree, filepath.Join(d.dir(note.To, d.sealedSub()), d.name, s.Old)))
		}
	}
}

// readBack reads the note of a layer; fs.ErrNotExist if there is none.
func (d *Driver) readBack(open snapshot.LayerID) (note backNote, err error) {
	f, err := os.Open(d.backFile(open))
	if err != nil {
		return note, err
	}
	return note, errors.Join(gob.NewDecoder(f).Decode(&note), f.Close())
}

// resume finishes what was cut off on the way back from v. If the tree shows neither
// view, for the host was booted, it is shown the old one first. It returns what the
// tree shows then.
func (d *Driver) resume(ctx context.Context, v snapshot.View, shown snapshot.LayerID) (snapshot.LayerID, error) {
	note, err := d.readBack(v.Open)
	if errors.Is(err, fs.ErrNotExist) {
		return shown, nil
	}
	g := goBack{d: d, ctx: context.WithoutCancel(ctx), open: v.Open, note: note, again: true}
	switch {
	case err != nil:
		return shown, err
	case shown != "" && shown != note.To && note.Steps == nil: // nothing was changed, and the layer is as good as any
		return shown, d.stay(v.Open)
	case shown != note.To: // others may have written to the old view for long, and would find that covered
		if err := g.showOld(); err != nil {
			return shown, err // the next one tries again
		}
	}
	if err = g.finish(nil); err == nil {
		shown, err = d.Shown(ctx)
	}
	return shown, err
}

// stay takes away the note of a layer that is shown: who would have gone back was killed
// before. What comes into it now is not to be carried after a boot, where nothing tells
// any more which of the two was shown.
func (d *Driver) stay(open snapshot.LayerID) error {
	there, err := exists(d.backFile(open))
	if err != nil || !there {
		return err
	}
	return errors.Join(os.Remove(d.backFile(open)), durable.SyncDir(d.dir(open, "")))
}

func (g *goBack) showOld() error {
	layers, err := g.d.StandsOn(g.note.To)
	if err != nil {
		return err
	}
	_, err = g.d.Show(g.ctx, snapshot.View{Layers: layers, Open: g.note.To})
	return err
}

// owes tells whether a layer has what is still to be carried into the shown one.
func (d *Driver) owes(id, shown snapshot.LayerID) bool {
	note, err := d.readBack(id)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) // one that cannot be read may
	}
	return note.To == shown
}
