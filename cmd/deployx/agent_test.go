package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// agentOf makes the command of an agent, with args and a config file.
func agentOf(t *testing.T, file, text string, args ...string) (*cobra.Command, error) {
	t.Helper()
	if file != "" {
		file = filepath.Join(t.TempDir(), file)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := &app{cwd: "/"}
	root := a.root()
	c, rest, err := root.Find(append([]string{"agent"}, args...))
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, configure(c, file)
}

func TestAgentSettings(t *testing.T) {
	const yaml = `
url: https://from.file
token-file: /t
grace: 7s
tree: /srv/file
allow-tree: [/a, /b]
allow-plaintext: true
retention: 48h
keep-bytes: 2K
`
	const toml = `
url = "https://from.file"
token-file = "/t"
grace = "7s"
tree = "/srv/file"
allow-tree = ["/a", "/b"]
allow-plaintext = true
keep-for = "48h"
max-bytes = "2K"
copy-max-bytes = 9
`
	t.Setenv("DEPLOYX_GRACE", "8s")
	t.Setenv("DEPLOYX_RETENTION", "1h")
	for file, text := range map[string]string{"a.yaml": yaml, "a.toml": toml} {
		c, err := agentOf(t, file, text, "--retention", "2h")
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, want := range map[string]string{
			"url": "https://from.file", "token-file": "/t", "tree": "/srv/file", "allow-plaintext": "true",
			"grace": "8s", "keep-for": "2h0m0s", "retention": "2h0m0s", "log-format": "text", "max-bytes": "2048",
		} {
			if got := c.Flags().Lookup(name).Value.String(); got != want {
				t.Errorf("%s: %s is %s, want %s", file, name, got, want)
			}
		}
		if got, err := c.Flags().GetStringArray("allow-tree"); err != nil || !reflect.DeepEqual(got, []string{"/a", "/b"}) {
			t.Errorf("%s: allow-tree is %q, %v", file, got, err)
		}
	}
	t.Setenv("DEPLOYX_ALLOW_TREE", "/x\n/y z")
	c, err := agentOf(t, "a.yaml", yaml)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Flags().Lookup("keep-for").Value.String(); got != "1h0m0s" {
		t.Errorf("keep-for by its former name, from the environment: %s", got)
	}
	os.Unsetenv("DEPLOYX_RETENTION") //nolint:errcheck // Setenv puts it back
	if c, err = agentOf(t, "a.yaml", yaml); err != nil || c.Flags().Lookup("keep-for").Value.String() != "48h0m0s" {
		t.Errorf("keep-for by its former name, from the file: %v %v", c.Flags().Lookup("keep-for").Value, err)
	}
	if got, _ := c.Flags().GetStringArray("allow-tree"); !reflect.DeepEqual(got, []string{"/x", "/y z"}) {
		t.Errorf("from the environment: %q", got)
	}
}

func TestAgentSettingsThatAreWrong(t *testing.T) {
	for text, want := range map[string]string{
		"allow-trees: [/a]": "allow-trees", "grace: soon": "grace", "url: [a, b]": "url", "url: {a: b}": "url", "grace: [": "config file",
		"config: other": "config", "insecure:": "insecure",
	} {
		if _, err := agentOf(t, "a.yaml", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := agentOf(t, "empty.yaml", ""); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	t.Setenv("DEPLOYX_GRACE", "soon")
	if _, err := agentOf(t, "", ""); err == nil || !strings.Contains(err.Error(), "DEPLOYX_GRACE") {
		t.Errorf("the environment: %v", err)
	}
}

func TestAgentInsecureIsSpelledOut(t *testing.T) {
	log, err := (&agentFlags{logFormat: "json", logLevel: "error"}).logger(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{cwd: "/"}
	for word, ok := range map[string]bool{"": true, "yes": false, "true": false, insecureWord: true} {
		c, err := a.tls(&agentFlags{insecure: word}, log)
		if (err == nil) != ok {
			t.Errorf("--insecure=%s: %v", word, err)
		}
		if err == nil && c.InsecureSkipVerify != (word == insecureWord) {
			t.Errorf("--insecure=%s: verifies %v", word, !c.InsecureSkipVerify)
		}
	}
	if _, err := (&agentFlags{logFormat: "xml", logLevel: "info"}).logger(os.Stderr); err == nil {
		t.Error("a log format of xml")
	}
}

// Every setting stands in the table of docs/agent.md, and nothing else does.
func TestAgentSettingsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	c, err := agentOf(t, "", "")
	if err != nil {
		t.Fatal(err)
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "help", "config", "json", "quiet":
			return
		}
		if !strings.Contains(string(doc), "`"+f.Name+"`") || !strings.Contains(string(doc), "`"+variable(f.Name)+"`") {
			t.Errorf("docs/agent.md does not have %s and %s", f.Name, variable(f.Name))
		}
	})
}
