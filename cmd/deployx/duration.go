package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// limitFlag is a time to wait at most, 0 for ever.
type limitFlag struct{ *durationFlag }

func limitVar(fl *pflag.FlagSet, p *time.Duration, name, usage string) {
	fl.Var(limitFlag{(*durationFlag)(p)}, name, usage)
}

// Set takes what durationFlag takes, but nothing negative.
func (f limitFlag) Set(s string) error {
	err := f.durationFlag.Set(s)
	if err == nil && *f.durationFlag < 0 {
		err = fmt.Errorf("a time to wait is not negative: not %q", s)
	}
	return err
}

// durationFlag is a time.Duration that may be in days, too: retention is.
type durationFlag time.Duration

func durationVar(fl *pflag.FlagSet, p *time.Duration, name string, value time.Duration, usage string) {
	*p = value
	fl.Var((*durationFlag)(p), name, usage)
}

func (f *durationFlag) Type() string { return "duration" }

func (f *durationFlag) String() string {
	if *f == 0 {
		return "0" // by which pflag knows a default that says nothing
	}
	return time.Duration(*f).String()
}

// Set takes 90s, 1h30m, 7d, -1h.
func (f *durationFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n float64
		n, err = strconv.ParseFloat(days, 64)
		const most = 100 * 365
		if err == nil && !(n >= -most && n <= most) {
			err = strconv.ErrRange
		}
		d = time.Duration(n * float64(24*time.Hour))
	}
	if err != nil {
		return fmt.Errorf("a duration is a number with s, m, h or d, such as 90s, 1h30m or 7d: not %q", s)
	}
	*f = durationFlag(d)
	return nil
}
