package agent

import (
	"context"
	"errors"
	"time"

	"deployx/internal/wire"
	"deployx/snapshot"
	"deployx/socketio"
)

// onConnect registers, before anything else goes out on the new connection.
func (a *Agent) onConnect(ctx context.Context, c socketio.Connection) {
	a.backend.Store(c.ID)
	a.log.WithField("connection", c.ID).Info("Connected to the backend")
	a.register(ctx)
	a.link.set(true)
}

// register says who we are. It is done on every connection: backends in the
// field remember nothing.
func (a *Agent) register(ctx context.Context) {
	r := a.registration()
	a.link.tell(ctx, "agent_register", r)
	a.link.tell(ctx, "join_room", map[string]string{"agent_id": a.id, "room": a.id})
	a.heartbeat(ctx)
}

func (a *Agent) heartbeat(ctx context.Context) {
	a.link.tell(ctx, "agent_heartbeat", map[string]string{"agent_id": a.id, "timestamp": time.Now().UTC().Format(time.RFC3339Nano)})
}

func (a *Agent) registration() wire.Register {
	disk := a.o.State
	if a.trees.fallback != "" {
		disk = a.trees.fallback
	}
	info := systemInfo(a.machineID, disk)
	r := wire.Register{
		AgentID: a.id, MachineID: a.machineID, DeviceName: a.o.Name, IPAddress: info.IPAddress, OS: "linux",
		Shells: append([]string{}, a.o.Shells...), SystemInfo: info, Version: a.o.Version, Trees: []wire.Tree{}, Running: []string{},
	}
	if r.DeviceName == "" {
		r.DeviceName = info.Hostname
	}
	for _, t := range a.trees.all() {
		if tr, ok := describe(t); ok {
			r.Trees = append(r.Trees, tr)
			if t.path == a.trees.fallback {
				r.Driver = tr.Driver
			}
		}
		r.Running = append(r.Running, t.busy()...)
	}
	return r
}

// describe tells of a tree; false for one that was asked for and cannot be
// opened.
func describe(t *tree) (wire.Tree, bool) {
	s := t.current()
	if s == nil {
		return wire.Tree{}, false
	}
	out := wire.Tree{Path: t.path, Driver: s.Tree().Driver}
	rec, err := s.Record()
	if err != nil {
		out.Error = err.Error()
		return out, true
	}
	out.Head = rec.Head().Snapshot
	for e, err := range rec.Chain(out.Head) {
		if err != nil {
			out.Error = err.Error()
			break
		}
		if e.Kind == snapshot.KindCommand {
			out.Snapshots++
		}
	}
	return out, true
}

// keep sends the heartbeat, and registers again when asked to.
func (a *Agent) keep(ctx context.Context) {
	beat := time.NewTicker(a.o.Heartbeat)
	defer beat.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			a.heartbeat(ctx)
		case <-a.again:
			// Two agents of one name would drive each other out for ever:
			// slowly.
			if !wait(ctx, time.Until(last.Add(a.o.Heartbeat/10))) {
				return
			}
			last = time.Now()
			a.register(ctx)
			beat.Reset(a.o.Heartbeat)
		}
	}
}

// wait waits, and says whether ctx still stands.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (a *Agent) registerAgain() {
	select {
	case a.again <- struct{}{}:
	default:
	}
}

// onStatus: backends in the field drop our new session when an old socket of
// ours dies late. The sign is that they tell everybody we are offline.
func (a *Agent) onStatus(_ context.Context, e *socketio.Event) {
	f, err := decode(e.Args)
	if err == nil && f.text("agent_id", maxID) == a.id && f.text("status", maxID) == "offline" {
		a.log.Warn("The backend took us for offline; registering again")
		a.registerAgain()
	}
}

func (a *Agent) onRegistrationError(_ context.Context, e *socketio.Event) {
	f, err := decode(e.Args)
	if err == nil {
		a.log.Errorf("The backend refused the registration: %s", f.text("message", 1<<16))
	}
	a.wg.Go(func() { // perhaps it was not ready
		if wait(a.ctx, 3*a.o.Heartbeat) {
			a.registerAgain()
		}
	})
}

// onUnknown logs an event that we have no handler for, once.
func (a *Agent) onUnknown(_ context.Context, e *socketio.Event) {
	const most = 100 // a backend may invent names
	a.mu.Lock()
	known := a.unknown[e.Name] || len(a.unknown) >= most
	if !known {
		a.unknown[e.Name] = true
	}
	a.mu.Unlock()
	if !known {
		a.log.Debugf("Ignoring the event %.100q, which this agent does not know", e.Name)
	}
	if e.WantsAck() {
		a.ack(e, refusal(fail(snapshot.CodeUnsupported, "this agent does not know the event", "")))
	}
}

func (a *Agent) onError(_ context.Context, err error) {
	var p *socketio.HandlerPanic
	if errors.As(err, &p) {
		a.log.Errorf("%v\n%s", p, p.Stack)
		return
	}
	a.log.WithError(err).Warn("Could not connect to the backend; trying again")
}
