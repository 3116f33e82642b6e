package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// steps is how many commands, rollbacks and redos run under a service.
func steps() int {
	if os.Getenv("DEPLOYX_SOAK") != "" {
		return 500
	}
	return 40
}

func count(n int) func() bool { return func() bool { n--; return n >= 0 } }

// socketClient speaks HTTP over a unix socket, a connection for each request.
func socketClient(path string) *http.Client {
	return &http.Client{Timeout: soon, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

// A caller asks one thing after the other, all the time.
type caller struct {
	asked atomic.Int64 // and answered
	stop  chan struct{}
	done  chan struct{}
}

func (h *site) call(ask func(n int64) error) *caller {
	c := &caller{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for n := int64(0); ; n++ {
			select {
			case <-c.stop:
				return
			default:
			}
			if err := ask(n); err != nil {
				h.Errorf("request %d: %v", n, err)
				return
			}
			c.asked.Add(1)
		}
	}()
	h.Cleanup(func() { c.end() })
	return c
}

// end ends it, and tells how many were answered.
func (c *caller) end() int64 {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	<-c.done
	return c.asked.Load()
}

func fetch(c *http.Client, url string) (*http.Response, string, error) {
	r, err := c.Get(url)
	if err != nil {
		return nil, "", err
	}
	defer r.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %s", r.Status, b)
	}
	return r, string(b), err
}

const nginxConf = `
daemon off;
user root;
worker_processes 2;
pid run/nginx.pid;
error_log logs/error.log;
events {}
http {
	access_log logs/access.log;
	client_body_temp_path data/body; proxy_temp_path data/proxy; fastcgi_temp_path data/fastcgi; uwsgi_temp_path data/uwsgi; scgi_temp_path data/scgi;
	server {
		listen unix:%s;
		root %s;
		include %s;
	}
}
`

// TestNginx: nginx serves the tree, from a socket, and writes its logs in the
// tree, and a reload is one of the commands. Every request is answered with a
// whole file, after each step with the right one, and none is missing in the log.
func TestNginx(t *testing.T) {
	h := newSite(t)
	h.unpack()
	h.put("nginx.conf", fmt.Sprintf(nginxConf, h.path("run/web"), h.path("app"), h.path("app/headers.conf")))
	h.put("app/headers.conf", "add_header X-Release 0;\n")
	nginx := h.command(true, "nginx", "-p", h.tree, "-c", h.path("nginx.conf"), "-e", h.path("logs/error.log"))
	d := h.serve(nginx)
	client := socketClient(h.path("run/web"))
	h.until("nginx answers", func() bool { _, err := os.Stat(h.path("run/nginx.pid")); return err == nil })
	whole := regexp.MustCompile(`^release \d+\n$`)
	requests := h.call(func(int64) error {
		_, body, err := fetch(client, "http://web/index.html")
		if err == nil && !whole.MatchString(body) {
			err = fmt.Errorf("answered %q", body)
		}
		return err
	})
	var asked int64
	get := func() (*http.Response, string) {
		h.Helper()
		r, body, err := fetch(client, "http://web/index.html")
		if err != nil {
			h.Fatal(err)
		}
		asked++
		return r, body
	}
	reload := "kill -HUP $(cat run/nginx.pid)"
	h.more = []string{"echo 'add_header X-Release '%[1]d';' >app/headers.conf && " + reload, reload}
	h.settled = func() {
		if _, body := get(); body != h.read("app/index.html") {
			h.Errorf("step %d: nginx answers %q, the tree has %q", h.n, body, h.read("app/index.html"))
		}
	}
	h.work(count(steps()))
	h.run(reload)
	h.until("nginx has read what the tree has", func() bool {
		r, _ := get()
		return strings.Contains(h.read("app/headers.conf"), " "+r.Header.Get("X-Release")+";")
	})
	asked += requests.end()
	d.end(unix.SIGQUIT) // when it has answered, and written that down
	if n := int64(strings.Count(h.read("logs/access.log"), "GET /index.html")); n != asked {
		t.Errorf("%d requests are in the log of %d", n, asked)
	}
	if log := h.read("logs/error.log"); log != "" {
		t.Errorf("nginx complains: %s", log)
	}
	t.Logf("%d requests", asked)
}

// redis is a client of its protocol: one command, one answer.
type redis struct {
	net.Conn
	r *bufio.Reader
}

func (h *site) redis() *redis {
	h.Helper()
	var conn net.Conn
	h.until("redis answers", func() bool {
		c, err := net.Dial("unix", h.path("run/redis"))
		conn = c
		return err == nil
	})
	c := &redis{conn, bufio.NewReader(conn)}
	h.until("redis has read its data", func() bool { a, err := c.ask("PING"); return err == nil && a == "+PONG" })
	return c
}

func (c *redis) ask(format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(c, format+"\r\n", args...); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	line = strings.TrimSpace(line)
	if err == nil && strings.HasPrefix(line, "$") && line != "$-1" {
		line, err = c.r.ReadString('\n')
		line = strings.TrimSpace(line)
	}
	if strings.HasPrefix(line, "-") {
		err = fmt.Errorf("redis: %s", line)
	}
	return line, err
}

// TestRedis: redis keeps an append-only file in the tree, and a rewrite of it is
// one of the commands. Every write that was acknowledged is there afterwards, and
// when redis has been killed and started again.
func TestRedis(t *testing.T) {
	h := newSite(t)
	h.unpack()
	start := func() *daemon {
		return h.serve(h.command(true, "redis-server", "--port", "0", "--unixsocket", h.path("run/redis"), "--dir", h.path("data"),
			"--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--auto-aof-rewrite-percentage", "50", "--auto-aof-rewrite-min-size", "100kb"))
	}
	d := start()
	c := h.redis()
	writes := h.call(func(n int64) error {
		a, err := c.ask("SET k%d v%d", n, n)
		if err == nil && a != "+OK" {
			err = fmt.Errorf("answered %s", a)
		}
		return err
	})
	cli := h.libraries() + " " + h.program("redis-cli") + " -s run/redis "
	h.more = []string{cli + "BGREWRITEAOF >/dev/null; until " + cli + "INFO persistence | grep -q aof_rewrite_in_progress:0; do sleep 0.01; done"}
	h.work(count(steps()))
	n := writes.end()
	check := func(when string) {
		h.Helper()
		c := h.redis()
		defer c.Close() //nolint:errcheck // read only
		if a, err := c.ask("DBSIZE"); err != nil || a != fmt.Sprintf(":%d", n) {
			t.Errorf("%s: %s of %d keys, %v", when, a, n, err)
		}
		for i := range n {
			if a, err := c.ask("GET k%d", i); err != nil || a != fmt.Sprintf("v%d", i) {
				t.Fatalf("%s: key %d of %d is %q, %v", when, i, n, a, err)
			}
		}
	}
	check("running")
	c.Close() //nolint:errcheck // all was answered
	d.end(unix.SIGKILL)
	d = start()
	check("started again")
	d.end(unix.SIGTERM)
	t.Logf("%d writes", n)
}

// nodeServer answers each request with its number, when it has written that to two
// logs: by a descriptor that it keeps, and by name.
const nodeServer = `
const fs = require("fs"), http = require("http");
const log = fs.openSync("logs/kept", "a");
http.createServer((req, res) => {
	const line = req.url.slice(1) + "\n";
	fs.writeSync(log, line);
	fs.appendFileSync("logs/named", line);
	fs.writeFileSync("logs/last.new", line);
	fs.renameSync("logs/last.new", "logs/last");
	res.end(line);
}).listen("run/node");
`

// TestNode: a server of Node's listens on a socket in the tree and writes logs
// there. Every call is answered, and every answer is in the logs, once and in
// order.
func TestNode(t *testing.T) {
	h := newSite(t)
	node, err := exec.LookPath("node")
	if err != nil {
		notInstalled(t, "node")
	}
	h.put("server.js", nodeServer)
	c := exec.Command(node, "server.js")
	c.Dir = h.tree
	h.serve(c)
	h.until("Node listens", func() bool { _, err := os.Stat(h.path("run/node")); return err == nil })
	client := socketClient(h.path("run/node"))
	calls := h.call(func(n int64) error {
		want := strconv.FormatInt(n, 10) + "\n"
		_, body, err := fetch(client, "http://node/"+strings.TrimSpace(want))
		if err == nil && body != want {
			err = fmt.Errorf("answered %q", body)
		}
		return err
	})
	h.work(count(steps()))
	n := calls.end()
	var want strings.Builder
	for i := range n {
		fmt.Fprintln(&want, i)
	}
	for _, log := range []string{"logs/kept", "logs/named"} {
		if got := h.read(log); got != want.String() {
			t.Errorf("%s: %d lines of %d, or others", log, strings.Count(got, "\n"), n)
		}
	}
	if got := h.read("logs/last"); got != fmt.Sprintf("%d\n", n-1) {
		t.Errorf("the last is %q of %d", got, n)
	}
	t.Logf("%d calls", n)
}

// TestPostgres: PostgreSQL keeps its data in the tree, and pgbench runs, with
// connections that stay and then with one for each transaction. No transaction
// that was reported as committed is lost, also after a crash of the server, and
// the server does not complain.
func TestPostgres(t *testing.T) {
	h := newSite(t)
	h.unpack()
	for _, dir := range []string{"data", "run", "logs"} {
		if err := os.Chown(h.path(dir), nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	data := h.path("data/pg")
	h.tool(false, "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--data-checksums", "--no-sync")
	start := func() *daemon {
		d := h.serve(h.command(false, "postgres", "-D", data, "-k", h.path("run"), "-c", "listen_addresses=",
			"-c", "logging_collector=on", "-c", "log_directory="+h.path("logs"), "-c", "log_filename=pg.log", "-c", "checkpoint_timeout=30s", "-c", "autovacuum_naptime=1s"))
		h.until("PostgreSQL answers", func() bool { return h.command(false, "pg_isready", "-q").Run() == nil })
		return d
	}
	d := start()
	h.tool(false, "pgbench", "-i", "-q", "-s", "1", "postgres")
	h.tool(false, "psql", "-qc", "CREATE TABLE mine (n int PRIMARY KEY); CREATE EXTENSION IF NOT EXISTS amcheck", "postgres")
	mine := h.insert()
	var transactions int
	for _, how := range [][]string{{}, {"-C"}} {
		bench := h.command(false, "pgbench", append(how, "-n", "-c", "4", "-T", fmt.Sprint(steps()/5), "postgres")...)
		transactions += h.during(bench)
	}
	inserted := mine.end()
	sql := func(query string) string {
		h.Helper()
		return strings.TrimSpace(h.tool(false, "psql", "-Atc", query, "postgres"))
	}
	check := func(when string) {
		h.Helper()
		if got := sql("SELECT count(*), coalesce(max(n), -1) FROM mine"); got != fmt.Sprintf("%d|%d", inserted, inserted-1) {
			t.Errorf("%s: %s of %d inserts", when, got, inserted)
		}
		if got := sql("SELECT count(*) FROM pgbench_history"); got != strconv.Itoa(transactions) {
			t.Errorf("%s: %s of %d transactions", when, got, transactions)
		}
		if got := sql("SELECT (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta), (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta) FROM pgbench_history"); got != "t|t" {
			t.Errorf("%s: the balances do not agree: %s", when, got)
		}
		h.tool(false, "pg_amcheck", "--heapallindexed", "postgres")
	}
	check("running")
	d.end(unix.SIGQUIT) // at once: what is not in the files is lost
	d = start()
	check("after a crash")
	d.end(unix.SIGINT)
	h.tool(false, "pg_checksums", "--check", "-D", data)
	for line := range strings.Lines(h.read("logs/pg.log")) {
		if regexp.MustCompile(`PANIC|ERROR|FATAL|corrupt|invalid page|could not|WARNING`).MatchString(line) && !strings.Contains(line, "the database system is ") {
			t.Errorf("PostgreSQL complains: %s", line)
		}
	}
	t.Logf("%d transactions of pgbench, %d inserts", transactions, inserted)
}

// insert inserts numbers, each when the one before is committed.
func (h *site) insert() *caller {
	h.Helper()
	c := h.command(false, "psql", "-Atqw", "-v", "ON_ERROR_STOP=1", "postgres")
	in, err := c.StdinPipe()
	if err != nil {
		h.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		h.Fatal(err)
	}
	if err := c.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		in.Close()   //nolint:errcheck // it ends then
		_ = c.Wait() // it may have been killed
	})
	r := bufio.NewReader(out)
	return h.call(func(n int64) error {
		if _, err := fmt.Fprintf(in, "INSERT INTO mine VALUES (%d) RETURNING n;\n", n); err != nil {
			return err
		}
		line, err := r.ReadString('\n')
		if err == nil && line != fmt.Sprintln(n) {
			err = fmt.Errorf("answered %q", line)
		}
		return err
	})
}

// during works while pgbench runs, and tells how many transactions it says were
// committed.
func (h *site) during(bench *exec.Cmd) int {
	h.Helper()
	out := new(strings.Builder)
	bench.Stdout, bench.Stderr = out, out
	if err := bench.Start(); err != nil {
		h.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- bench.Wait() }()
	h.work(func() bool {
		if len(ended) > 0 {
			return false
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // a command now and then
		return true
	})
	if err := <-ended; err != nil {
		h.Fatalf("pgbench: %v\n%s", err, out)
	}
	m := regexp.MustCompile(`transactions actually processed: (\d+)`).FindStringSubmatch(out.String())
	if m == nil {
		h.Fatal(out)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		h.Fatal(err)
	}
	return n
}
