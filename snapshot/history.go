package snapshot

import (
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Chain yields the entries from the given one down to base, to the floor or to
// what is being committed, newest first: those that can be rolled back. It stops
// at the first error, which it yields.
func (r *Record) Chain(from ID) iter.Seq2[Snapshot, error] {
	return r.chain(from, r.at().bottom())
}

// chain yields the entries from one down to, without, another.
func (r *Record) chain(from, bottom ID) iter.Seq2[Snapshot, error] {
	return func(yield func(Snapshot, error) bool) {
		for id := from; id != "" && id != bottom; {
			s, err := r.Snapshot(id)
			if !yield(s, err) || err != nil {
				return
			}
			id = s.Parent
		}
	}
}

// View is what the tree shows when head is h. While the top entry shares the
// open layer, that layer is not among the sealed ones.
func (r *Record) View(h Head) (View, error) {
	if h.Stands != nil {
		return View{Layers: slices.Clone(h.Stands.Layers), Open: h.Open}, nil
	}
	return r.Below(h)
}

// Below is the view that the entries make up: View, but for a pinned layer that
// has been sealed by copies.
func (r *Record) Below(h Head) (View, error) {
	layers, err := r.Layers(h.Snapshot)
	if n := len(layers); n > 0 && layers[n-1] == h.Open {
		layers = slices.Clip(layers[:n-1]) // an append must not write into it
	}
	return View{Layers: layers, Open: h.Open}, err
}

// Resolve finds the one snapshot whose id begins with prefix. The command that Running
// finds is one: it will be recorded with that id.
func (r *Record) Resolve(prefix string) (ID, error) {
	prefix = strings.ToLower(prefix)
	if !validID(prefix) {
		return "", &Error{
			Code: CodeUnknownSnapshot, Msg: fmt.Sprintf("%q is not a snapshot id", prefix),
			Hint: "ids are hexadecimal digits and dashes; deployx log lists them",
		}
	}
	all, err := r.All()
	if err != nil {
		return "", err
	}
	begun, ok, err := r.Running()
	if err != nil {
		return "", err
	}
	if ok && !slices.Contains(all, begun.ID) {
		all = append(slices.Clip(all), begun.ID)
	}
	var found []string
	for _, id := range all {
		if strings.HasPrefix(string(id), prefix) {
			found = append(found, string(id))
		}
	}
	if len(found) > 1 { // what has expired is meant by its whole id only
		found = slices.DeleteFunc(found, r.expired)
	}
	switch len(found) {
	case 1:
		return ID(found[0]), nil
	case 0:
		if r.expired(prefix) {
			return "", r.errExpired(prefix)
		}
		return "", &Error{
			Code: CodeUnknownSnapshot, Msg: fmt.Sprintf("no snapshot begins with %q", prefix),
			Hint: "deployx log --all lists them",
		}
	}
	return "", &Error{
		Code: CodeUnknownSnapshot, Msg: fmt.Sprintf("%d snapshots begin with %q", len(found), prefix),
		Candidates: found[:min(len(found), 10)], Hint: "give more of the id",
	}
}

// Above lists the applied entries from the top down to and with id, newest
// first: what rolling back to id drops. When id shares its layer with older
// entries they are one rollback point, and Above goes down to the oldest.
// CodeUnknownSnapshot if id is not applied.
func (r *Record) Above(id ID) ([]Snapshot, error) {
	list, err := r.AboveOldest(func(s Snapshot) (want, done bool) { return s.ID == id, s.ID == id })
	if err == nil && list == nil {
		err = r.notApplied(id)
	}
	return list, err
}

// AboveOldest is Above for the oldest entry that pick wants, of those that it is
// asked about, from the newest on until it is done; nil if it wants none.
func (r *Record) AboveOldest(pick func(Snapshot) (want, done bool)) ([]Snapshot, error) {
	var list []Snapshot
	n, done := 0, false
	for s, err := range r.Chain(r.at().Snapshot) {
		if err != nil {
			return nil, err
		}
		shares := n > 0 && n == len(list) && s.Layer != "" && s.Layer == list[n-1].Layer
		if done && !shares {
			break
		}
		list = append(list, s)
		want := false
		if !done {
			want, done = pick(s)
		}
		if want || shares {
			n = len(list)
		}
	}
	if n == 0 {
		return nil, nil
	}
	return list[:n:n], nil
}

func (r *Record) notApplied(id ID) error {
	if _, err := r.Snapshot(id); err != nil {
		return err
	}
	if r.expired(string(id)) {
		return r.errExpired(string(id))
	}
	return &Error{
		Code: CodeUnknownSnapshot, Msg: fmt.Sprintf("snapshot %s has been rolled back already", id),
		Hint: "deployx log --all shows it; deployx redo brings the newest rollback back",
	}
}

// FirstOfBatch finds the oldest applied command of a batch.
func (r *Record) FirstOfBatch(batch string) (ID, error) {
	var first ID
	for s, err := range r.Chain(r.at().Snapshot) {
		if err != nil {
			return "", err
		}
		if s.BatchID == batch && s.Kind == KindCommand {
			first = s.ID
		}
	}
	if first == "" {
		return "", &Error{
			Code: CodeUnknownBatch, Msg: fmt.Sprintf("no applied command belongs to batch %q", batch),
			Hint: "deployx log shows the batch of each command",
		}
	}
	return first, nil
}

// Expired tells whether a snapshot can no longer be rolled back to because it
// has expired or been committed.
func (r *Record) Expired(id ID) bool { return r.expired(string(id)) }

// expired tells whether an id, or a prefix of one, is not above the floor or
// what is being committed: ids sort by time.
func (r *Record) expired(id string) bool {
	bottom := string(r.at().bottom())
	return bottom != "" && id <= bottom
}

func (r *Record) errExpired(id string) error {
	if h := r.at(); id <= string(max(h.Committed, h.Committing)) {
		return &Error{
			Code: CodeExpired, Msg: fmt.Sprintf("snapshot %s has been committed: what its command did is part of the directory itself", id),
			Hint: "it cannot be rolled back; deployx log lists what can",
		}
	}
	return &Error{
		Code: CodeExpired, Msg: fmt.Sprintf("snapshot %s has expired", id),
		Hint: "what its command did stays; deployx log lists what can still be rolled back",
	}
}
