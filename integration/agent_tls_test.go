package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deployx/socketio"
)

// TestAgentTLS: the certificate is verified against the CA that was named, and
// the agent shows its own.
func TestAgentTLS(t *testing.T) {
	h := newHost(t)
	cert, key := clientCertificate(t, h.dir)
	registered := make(chan string, 10)
	srv := socketio.NewServer(socketio.ServerConfig{})
	srv.Of("/").On("agent_register", func(s *socketio.Socket, _ *socketio.Event) {
		registered <- s.Request().TLS.PeerCertificates[0].Subject.CommonName + " " + s.Request().Header.Get("X-Fleet")
	})
	web := httptest.NewUnstartedServer(srv)
	web.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	web.StartTLS()
	defer web.Close()
	defer srv.Close() //nolint:errcheck // always nil
	url := strings.Replace(web.URL, "127.0.0.1", "localhost", 1)
	h.run(url, "--cert", cert, "--key", key)
	for end := time.Now().Add(soon); !strings.Contains(h.said(), "certificate"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no word of the certificate:\n%s", h.said())
		}
	}
	h.stop()
	if len(registered) != 0 {
		t.Fatal("it trusted anybody")
	}
	ca := filepath.Join(h.dir, "ca.pem")
	writePEM(t, ca, "CERTIFICATE", web.Certificate().Raw)
	headers := filepath.Join(h.dir, "headers")
	if err := os.WriteFile(headers, []byte("X-Fleet: blue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// httptest's certificate is for example.com and 127.0.0.1.
	h.run(web.URL, "--ca", ca, "--cert", cert, "--key", key, "--header-file", headers)
	select {
	case got := <-registered:
		if got != "agent blue" {
			t.Errorf("came as %q", got)
		}
	case <-time.After(soon):
		t.Fatalf("does not come:\n%s", h.said())
	}
}

func clientCertificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	template.Subject.CommonName = "agent"
	der, err := x509.CreateCertificate(rand.Reader, template, template, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePEM(t, cert, "CERTIFICATE", der)
	if der, err = x509.MarshalPKCS8PrivateKey(priv); err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "PRIVATE KEY", der)
	return cert, key
}

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAgentRefusesToStart where it would not be safe.
func TestAgentRefusesToStart(t *testing.T) {
	h := newHost(t)
	token := filepath.Join(h.dir, "token")
	if err := os.WriteFile(token, []byte("s3cret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"not encrypted": {"--url", "http://192.0.2.1:1"},
		"chmod 600":     {"--url", "http://127.0.0.1:1", "--token-file", token},
		"no backend":    {},
		"spell out":     {"--url", "https://127.0.0.1:1", "--insecure", "true"},
		"PRIVATE KEY":   {"--url", "http://127.0.0.1:1", "--require-signature", privateKey(t, h.dir)},
	} {
		out, err := h.command(append(args, "--state", h.state())...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "s3cret") {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
}

func privateKey(t *testing.T, dir string) string {
	_, key := clientCertificate(t, dir)
	return key
}
