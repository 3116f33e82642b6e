package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"deployx/internal/wire"
	"deployx/socketio"
)

// Agent serves one backend.
type Agent struct {
	o         Options
	log       logrus.FieldLogger
	id        string
	machineID string
	dir       string // of the agent's own files
	where     string // the backend's URL, without what may be secret
	signers   signers

	link    *link
	journal *journal
	outbox  *outbox
	audit   *audit
	trees   *trees

	ctx       context.Context // ends when nothing more is sent
	stopAll   context.CancelFunc
	interrupt context.CancelFunc // of everything that runs
	wg        sync.WaitGroup
	acks      chan func()
	queries   chan struct{} // a token for each that may run
	again     chan struct{} // holds a token when the agent is to register again
	stopping  atomic.Bool
	backend   atomic.Value // string: the connection's id

	rebooted bool // since the agent ran last

	mu       sync.Mutex
	streams  map[*stream]struct{}
	terminal *terminal
	unknown  map[string]bool // events without a handler that were logged
}

// New checks the options and opens the agent's files. Run must follow, or
// Close.
func New(o Options) (*Agent, error) {
	o = o.withDefaults()
	if err := o.Check(); err != nil {
		return nil, err
	}
	a := &Agent{
		o: o, log: o.Log, id: o.AgentID, where: bare(o.URL), dir: filepath.Join(o.State, "agent"),
		acks: make(chan func(), 1024), queries: make(chan struct{}, 16), again: make(chan struct{}, 1),
		streams: map[*stream]struct{}{}, unknown: map[string]bool{},
	}
	a.backend.Store("")
	if err := a.openFiles(); err != nil {
		return nil, err
	}
	client, err := socketio.New(a.config())
	if err == nil && len(o.SignatureKeys) > 0 {
		a.signers, err = readSigners(o.SignatureKeys)
		if err != nil {
			err = fmt.Errorf("signature keys: %w", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.assemble(client)
	return a, nil
}

func (a *Agent) openFiles() (err error) {
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	if a.machineID, err = machineID(a.dir); err != nil {
		return err
	}
	if a.id == "" {
		a.id = agentID(a.machineID)
	}
	if a.journal, err = openJournal(a.dir, a.o.journal); err != nil {
		return err
	}
	if a.journal.damaged > 0 {
		a.log.Warnf("%d lines of the journal are damaged and were skipped", a.journal.damaged)
	}
	if a.audit, err = openAudit(a.dir, 0); err != nil {
		return errors.Join(err, a.journal.close())
	}
	return sweepSpools(a.dir)
}

func (a *Agent) config() socketio.Config {
	return socketio.Config{
		URL: a.o.URL, Path: a.o.Path, Namespace: a.o.Namespace, Transports: a.o.Transports, TLS: a.o.TLS,
		Auth:   func(context.Context) (any, error) { return a.credentials() },
		Header: func(context.Context) (http.Header, error) { return a.headers(), nil },
		// Ours are shorter; this one only must not come first.
		AckTimeout: 2 * maxTries * a.o.AckTimeout,
		SendBuffer: 1 << 20, MaxMessage: 2 * maxRequest, HandlerBuffer: 4 * maxRequest,
		Backoff: a.o.Backoff,
	}
}

func (a *Agent) headers() http.Header {
	if a.o.Header == nil {
		return http.Header{}
	}
	return a.o.Header
}

// credentials are the payload of CONNECT.
func (a *Agent) credentials() (any, error) {
	auth := map[string]string{"agent_id": a.id}
	if a.o.TokenFile != "" {
		token, err := readToken(a.o.TokenFile)
		if err != nil {
			return nil, err
		}
		auth["token"] = token
	}
	return auth, nil
}

func (a *Agent) assemble(t transport) {
	a.link = newLink(t)
	a.ctx, a.stopAll = context.WithCancel(context.Background())
	var running context.Context
	running, a.interrupt = context.WithCancel(context.Background())
	a.trees = newTrees(running, a.o.Open, a.o.Trees, a.o.AllowTrees)
	a.outbox = &outbox{
		link: a.link, journal: a.journal, log: a.log, patience: a.o.Patience, ackTimeout: a.o.AckTimeout,
		ctx: a.ctx, wake: make(chan struct{}), lanes: map[string][]*event{}, silent: map[string]bool{},
	}
	for name, h := range a.handlers() {
		t.On(name, a.receive(name, h))
	}
	t.On("device_status_changed", a.onStatus)
	t.On("registration_success", func(context.Context, *socketio.Event) { a.log.Info("Registered with the backend") })
	t.On("registration_error", a.onRegistrationError)
	t.OnAny(a.onUnknown)
	t.OnConnect(a.onConnect)
	t.OnDisconnect(func(_ context.Context, reason error) {
		a.link.set(false)
		a.log.WithError(reason).Warn("Disconnected from the backend")
	})
	t.OnError(a.onError)
}

// ID is the agent's.
func (a *Agent) ID() string { return a.id }

// Run serves the backend until ctx ends. Then the running commands may finish
// within Grace, before they are interrupted; what waits is dropped and
// reported; results are delivered within FlushTimeout; and everything is
// closed. An error means that something could not be put away.
func (a *Agent) Run(ctx context.Context) error {
	a.prepare()
	a.log.WithFields(logrus.Fields{"agent_id": a.id, "version": a.o.Version}).Infof("Serving %s", a.where)
	client, stopClient := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = a.link.Run(client) }) // it ends because we end it
	a.wg.Go(func() { a.keep(a.ctx) })
	a.wg.Go(func() { a.cleanUp(a.ctx) })
	a.wg.Go(a.sendAcks)
	<-ctx.Done()
	a.log.Info("Stopping")
	a.finish()
	flush, cancel := context.WithTimeout(context.Background(), a.o.FlushTimeout)
	a.outbox.flush(flush)
	cancel()
	a.stopAll()
	a.outbox.close()
	stopClient()
	running.Wait()
	a.wg.Wait()
	return a.Close()
}

// prepare opens the trees, reports what was cut off when the agent ended last,
// and puts the results that were not delivered in line.
func (a *Agent) prepare() {
	for _, t := range a.trees.all() {
		if _, err := t.opened(a.ctx); err != nil {
			a.log.WithError(err).WithField("tree", t.path).Error("The tree cannot be used")
		}
	}
	a.outbox.add(a.journal.undelivered()...)
	a.settleUnfinished()
}

// finish ends what runs.
func (a *Agent) finish() {
	a.stopping.Store(true)
	a.trees.stop()
	a.stopTerminal()
	done := make(chan struct{})
	go func() {
		a.trees.wg.Wait()
		close(done)
	}()
	grace := time.NewTimer(a.o.Grace)
	defer grace.Stop()
	select {
	case <-done:
	case <-grace.C:
		a.log.Warnf("Commands still run after %s: interrupting them", a.o.Grace)
		a.interrupt()
		a.mu.Lock()
		for s := range a.streams {
			s.rush() // a backend that is frozen must not hold the end up
		}
		a.mu.Unlock()
		<-done // the shell kills what does not end
	}
}

// Close closes the agent's files. Run does it too.
func (a *Agent) Close() error {
	var errs []error
	if a.trees != nil {
		a.stopAll()
		a.interrupt()
		a.mu.Lock()
		left := a.streams
		a.streams = map[*stream]struct{}{}
		a.mu.Unlock()
		for s := range left {
			s.close()
		}
		errs = append(errs, a.trees.close())
	}
	return errors.Join(append(errs, a.journal.close(), a.audit.close())...)
}

// publish makes results last and then puts them in line.
func (a *Agent) publish(k key, events ...*event) {
	wait, err := a.journal.post(k, events...)
	if err == nil {
		err = wait()
	}
	if err != nil {
		a.sendOnce(k, events, err)
		return
	}
	a.outbox.add(events...)
}

// announce is publish for results that stand in the tree's record already, from
// where the next start takes them if a power cut takes them from the journal:
// they go out while they become last. The caller calls last before the tree's
// record moves on.
func (a *Agent) announce(k key, events ...*event) (last func()) {
	wait, err := a.journal.post(k, events...)
	if err != nil {
		a.sendOnce(k, events, err)
		return func() {}
	}
	a.outbox.add(events...)
	a.wg.Go(func() { _ = wait() }) // last tells
	return func() {
		if err := wait(); err != nil {
			a.log.WithError(err).WithField("id", k.id).Error("The result may not last over a power cut")
		}
	}
}

func (a *Agent) sendOnce(k key, events []*event, err error) {
	a.log.WithError(err).WithField("id", k.id).Error("The result could not be kept; it is sent once")
	for _, e := range events {
		a.link.tell(a.ctx, e.name, e.payload)
		if e.gone != nil {
			e.gone()
		}
	}
}

// event makes a durable event.
func (a *Agent) event(k key, lane, name string, payload any) *event {
	b, err := tag(a.id, payload)
	if err != nil {
		a.log.WithError(err).Errorf("encode %s", name) // our own types always can be
	}
	return &event{key: k, name: name, lane: lane, payload: b}
}

// tell sends an event that may be lost.
func (a *Agent) tell(name string, payload any) {
	b, err := tag(a.id, payload)
	if err != nil {
		a.log.WithError(err).Errorf("encode %s", name)
		return
	}
	a.link.tell(a.ctx, name, b)
}

// complain sends the event error.
func (a *Agent) complain(f wire.Failure) { a.tell("error", f) }
