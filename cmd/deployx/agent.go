package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deployx/agent"
	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

type agentFlags struct {
	o          agent.Options
	config     string
	trees      []string
	allow      []string
	ca, cert   string
	key        string
	insecure   string
	headerFile string
	signed     string
	logFormat  string
	logLevel   string
}

func (a *app) agentCmd() *cobra.Command {
	f := &agentFlags{}
	c := &cobra.Command{
		Use:   "agent --url URL [flags]",
		Short: "Serve a backend over Socket.IO: commands, batches, rollbacks",
		Long: `Connect to a backend over Socket.IO and do what it asks: run commands and
batches with a snapshot before each, stream their output, roll back. It
reconnects for ever; no request is done twice and no result is lost, also over
its own restarts.

Every flag can also be given as DEPLOYX_ and its name in capitals with _ for -,
or in the file of --config (YAML, or TOML if its name ends in .toml) under its
name. The flag wins over the environment, the environment over the file.

SIGTERM lets the running commands finish within --grace, then interrupts them,
delivers the results and ends.

Exit status: 0 after SIGTERM or SIGINT; 1 if it could not start or close; 2
usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := configure(c, f.config); err != nil {
				return usageError{err}
			}
			return a.serve(c.Context(), f)
		},
	}
	f.register(c)
	a.session.register(c, true)
	return c
}

func (f *agentFlags) register(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.config, "config", "", "read settings from this YAML or TOML `file`")
	fl.StringVar(&f.o.URL, "url", "", "the backend's `URL`: https://host:port")
	fl.StringVar(&f.o.Path, "path", "/socket.io/", "the endpoint's `path`")
	fl.StringVar(&f.o.Namespace, "namespace", "/", "the Socket.IO `namespace` to join")
	fl.StringSliceVar(&f.o.Transports, "transport", nil, "`transports` in the order in which they are tried (default websocket,polling)")
	fl.StringVar(&f.o.TokenFile, "token-file", "", "`file` with the token for the backend; only its owner may be able to read it")
	fl.StringVar(&f.headerFile, "header-file", "", "`file` with HTTP headers, one Name: value a line; only its owner may be able to read it")
	fl.StringVar(&f.ca, "ca", "", "`file` with the CA certificates to trust instead of the system's")
	fl.StringVar(&f.cert, "cert", "", "client certificate `file`")
	fl.StringVar(&f.key, "key", "", "client key `file`")
	fl.StringVar(&f.insecure, "insecure", "", `"yes-anyone-may-run-commands" does not verify the backend's certificate`)
	fl.BoolVar(&f.o.AllowPlaintext, "allow-plaintext", false, "connect without TLS to a backend that is not on this host")
	fl.StringVar(&f.o.AgentID, "agent-id", "", "our `id` (default: made from the machine id)")
	fl.StringVar(&f.o.Name, "name", "", "our `name` (default: the host's)")
	fl.StringArrayVar(&f.trees, "also-tree", nil, "one more `directory` to serve, beside --tree")
	fl.StringArrayVar(&f.allow, "allow-tree", nil, "a `directory` that requests may name; without any they may name all")
	fl.StringVar(&f.signed, "require-signature", "", "do only what is signed by a public key in this PEM `file`")
	durationVar(fl, &f.o.Retention, "keep-for", 24*time.Hour, "let snapshots go that are older; negative keeps them")
	fl.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName { return pflag.NormalizedName(renamed(name)) })
	durationVar(fl, &f.o.CleanupInterval, "cleanup-interval", time.Hour, "how often to look for those")
	durationVar(fl, &f.o.Grace, "grace", 30*time.Second, "at SIGTERM: how long running commands may go on")
	durationVar(fl, &f.o.FlushTimeout, "flush-timeout", 10*time.Second, "at SIGTERM: how long to try to deliver results")
	durationVar(fl, &f.o.Backoff.Min, "reconnect-min", time.Second, "wait before the first try to connect again; doubles with each")
	durationVar(fl, &f.o.Backoff.Max, "reconnect-max", 30*time.Second, "longest wait between tries to connect")
	durationVar(fl, &f.o.Backoff.Refused, "reconnect-refused", 15*time.Second, "least wait after the backend refused us")
	fl.StringVar(&f.logFormat, "log-format", "text", "json or text")
	fl.StringVar(&f.logLevel, "log-level", "info", "error, warn, info or debug")
}

// serve runs the agent until ctx ends.
func (a *app) serve(ctx context.Context, f *agentFlags) error {
	log, err := f.logger(a.err)
	if err != nil {
		return err
	}
	o := f.o
	o.Version, o.State, o.Log, o.Open, o.Clean = version, a.stateDir(), log, a.openFor(log), a.cleanFor(log)
	o.Shells, o.Shell, o.User = shell.Installed(), a.session.shell, a.session.user
	if a.tree != "" {
		o.Trees = []string{a.abs(a.tree)}
	}
	for _, t := range f.trees {
		o.Trees = append(o.Trees, a.abs(t))
	}
	for _, t := range f.allow {
		o.AllowTrees = append(o.AllowTrees, a.abs(t))
	}
	if o.Env, err = a.extraEnv(); err != nil {
		return err
	}
	if err := a.checkDriver(); err != nil {
		return err
	}
	if o.TLS, err = a.tls(f, log); err != nil {
		return err
	}
	if err := a.secrets(f, &o); err != nil {
		return err
	}
	if err := o.CheckBackend(); err != nil {
		return usageError{err}
	}
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return err
	}
	ag, err := agent.New(o)
	if err != nil {
		return err
	}
	return ag.Run(ctx)
}

func (f *agentFlags) logger(w io.Writer) (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(w)
	switch f.logFormat {
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	case "text":
		log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	default:
		return nil, usageError{fmt.Errorf("--log-format is json or text, not %q", f.logFormat)}
	}
	level, err := logrus.ParseLevel(f.logLevel)
	if err != nil {
		return nil, usageError{fmt.Errorf("--log-level is error, warn, info or debug, not %q", f.logLevel)}
	}
	log.SetLevel(level)
	return log, nil
}

// insecureWord is what must be spelled out to go without verification.
const insecureWord = "yes-anyone-may-run-commands"

func (a *app) tls(f *agentFlags, log *logrus.Logger) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.insecure != "" {
		if f.insecure != insecureWord {
			return nil, usageError{fmt.Errorf("--insecure lets anyone between here and the backend run commands: if that is meant, spell out --insecure=%s; else trust its certificate with --ca", insecureWord)}
		}
		log.Warn("The backend's certificate is not verified")
		c.InsecureSkipVerify = true
	}
	if f.ca != "" {
		pem, err := os.ReadFile(a.abs(f.ca))
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", f.ca)
		}
	}
	if (f.cert == "") != (f.key == "") {
		return nil, usageError{errors.New("--cert and --key go together")}
	}
	if f.cert != "" {
		pair, err := tls.LoadX509KeyPair(a.abs(f.cert), a.abs(f.key))
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// secrets reads what stands in files.
func (a *app) secrets(f *agentFlags, o *agent.Options) (err error) {
	if o.TokenFile != "" {
		o.TokenFile = a.abs(o.TokenFile)
	}
	if f.signed != "" {
		if o.SignatureKeys, err = os.ReadFile(a.abs(f.signed)); err != nil {
			return err
		}
	}
	if f.headerFile == "" {
		return nil
	}
	text, err := agent.ReadSecret(a.abs(f.headerFile))
	if err != nil {
		return err
	}
	o.Header = http.Header{}
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			o.Header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
		} else if k != "" {
			return fmt.Errorf("%s: a line is not Name: value", f.headerFile)
		}
	}
	return nil
}

// openFor opens sessions for the agent, and makes directories trees.
func (a *app) openFor(log *logrus.Logger) agent.Opener {
	return func(ctx context.Context, path string) (agent.Session, error) {
		b := *a
		w := log.WriterLevel(logrus.WarnLevel)
		b.tree, b.err, b.quiet = path, w, false
		t, err := b.knownOrNew(ctx)
		b.driver = "auto" // --driver is that of new trees
		if err == nil {
			var s *session.Session
			if s, err = b.open(ctx, t); err == nil {
				return &agentTree{s, &b}, nil
			}
		}
		return nil, errors.Join(err, w.Close())
	}
}

// cleanFor lets old snapshots of known trees go for the agent.
func (a *app) cleanFor(log *logrus.Logger) agent.Cleaner {
	return func(ctx context.Context, t snapshot.Tree, olderThan time.Duration) (n int, err error) {
		if err := stored(t, "mount the file system they are on"); err != nil {
			return 0, err
		}
		b := *a
		w := log.WriterLevel(logrus.WarnLevel)
		b.err, b.quiet, b.driver = w, false, "auto" // --driver is that of new trees
		b.session.forUpkeep(upkeepWait)
		err = b.with(ctx, t, func(s *session.Session) error {
			n, err = s.Expire(ctx, olderThan)
			return err
		})
		return n, errors.Join(err, w.Close())
	}
}

// agentTree is a session as the agent takes it.
type agentTree struct {
	*session.Session
	app *app
}

// Record reads the history from disk: the session's own is its business while
// it works.
func (t *agentTree) Record() (*snapshot.Record, error) {
	return snapshot.OpenRecord(filepath.Join(t.Tree().Store, "record"))
}

// Changes opens a session for reading, as deployx diff does, so that it need not
// wait for a command that runs.
func (t *agentTree) Changes(ctx context.Context, id snapshot.ID, visit func(snapshot.Change) error) error {
	return t.compare(ctx, id, func(c session.Comparison) error { return c.Changes(ctx, visit) })
}

// Patch writes the unified diff of deployx diff --patch.
func (t *agentTree) Patch(ctx context.Context, id snapshot.ID, w io.Writer) error {
	b := *t.app
	b.out = w
	return t.compare(ctx, id, func(c session.Comparison) error { return b.patch(ctx, c) })
}

// Size looks at a layer in the same way.
func (t *agentTree) Size(ctx context.Context, e snapshot.Snapshot) (n int64, err error) {
	err = t.app.reading(ctx, t.Tree(), func(s *session.Session) (err error) {
		n, err = s.Size(ctx, e)
		return err
	})
	return n, err
}

func (t *agentTree) compare(ctx context.Context, id snapshot.ID, f func(session.Comparison) error) error {
	return t.app.reading(ctx, t.Tree(), func(s *session.Session) error { return s.Compare(ctx, id, f) })
}

// Close ends the session and the pipe to the log.
func (t *agentTree) Close() error {
	err := t.Session.Close()
	if c, ok := t.app.err.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}
