package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// configure sets the flags that were not given from the environment and then
// from a file. A setting that there is no flag for is an error: a misspelled
// allow-tree must not pass in silence.
func configure(c *cobra.Command, file string) error {
	if file == "" {
		file = os.Getenv("DEPLOYX_CONFIG")
	}
	return configureFrom(c, file, os.LookupEnv)
}

// configureFrom is configure with another environment.
func configureFrom(c *cobra.Command, file string, env func(string) (string, bool)) error {
	settings := map[string]any{}
	if file != "" {
		b, err := os.ReadFile(file)
		if err == nil {
			err = parseSettings(file, b, &settings)
		}
		if err != nil {
			return fmt.Errorf("config file: %w", err)
		}
	}
	for name, v := range settings {
		if now := renamed(name); now != name {
			if _, ok := settings[now]; !ok {
				settings[now] = v
			}
			delete(settings, name)
		}
	}
	for name := range settings {
		if f := c.Flags().Lookup(name); f == nil || name == "config" {
			return fmt.Errorf("config file %s: there is no setting %q", file, name)
		}
	}
	var errs []error
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Changed {
			errs = append(errs, setFlag(c, f, settings, file, env))
		}
	})
	return errors.Join(errs...)
}

func parseSettings(file string, b []byte, into *map[string]any) error {
	if strings.HasSuffix(file, ".toml") {
		return toml.Unmarshal(b, into)
	}
	err := yaml.NewDecoder(bytes.NewReader(b)).Decode(into)
	if errors.Is(err, io.EOF) { // an empty file
		return nil
	}
	return err
}

// formerName is the name that a flag of retention had before; "" if it had none.
// It is still understood everywhere.
func formerName(flag string) string {
	switch flag {
	case "keep-for":
		return "retention"
	case "max-bytes":
		return "keep-bytes"
	}
	return ""
}

// renamed is the name that a flag has now.
func renamed(name string) string {
	for _, now := range []string{"keep-for", "max-bytes"} {
		if name == formerName(now) {
			return now
		}
	}
	return name
}

// variable is the environment's name for a flag.
func variable(flag string) string {
	return "DEPLOYX_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func setFlag(c *cobra.Command, f *pflag.Flag, settings map[string]any, file string, env func(string) (string, bool)) error {
	for _, name := range []string{f.Name, formerName(f.Name)} {
		if v, ok := env(variable(name)); ok && name != "" {
			if err := set(c, f, strings.Split(v, "\n")); err != nil {
				return fmt.Errorf("%s: %w", variable(name), err)
			}
			return nil
		}
	}
	v, ok := settings[f.Name]
	if !ok {
		return nil
	}
	var values []string
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			values = append(values, fmt.Sprint(e))
		}
	case map[string]any, nil:
		return fmt.Errorf("config file %s: %s: expected a value or a list of values", file, f.Name)
	default:
		values = []string{fmt.Sprint(v)}
	}
	if err := set(c, f, values); err != nil {
		return fmt.Errorf("config file %s: %w", file, err)
	}
	return nil
}

// set sets a flag, one that takes several values to all of them. In the
// environment they stand on a line each.
func set(c *cobra.Command, f *pflag.Flag, values []string) error {
	_, several := f.Value.(pflag.SliceValue)
	if !several && len(values) != 1 {
		return fmt.Errorf("%s: expected one value, got %d", f.Name, len(values))
	}
	for _, v := range values {
		if err := c.Flags().Set(f.Name, v); err != nil {
			return err
		}
	}
	return nil
}
