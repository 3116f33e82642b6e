package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"deployx/session"
)

// sizeFlag is a number of bytes, with K, M, G or T (or KiB and so on) for the powers of
// 1024.
type sizeFlag int64

func (f *sizeFlag) String() string { return strconv.FormatInt(int64(*f), 10) }
func (f *sizeFlag) Type() string   { return "size" }

// Set takes 1048576, 500M, 2GiB.
func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	*f = sizeFlag(n)
	return err
}

func parseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	for i, u := range []string{"K", "M", "G", "T"} {
		d, ok := strings.CutSuffix(strings.TrimSuffix(strings.ToUpper(s), "IB"), u)
		if ok {
			digits, unit = d, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, fmt.Errorf("a size is bytes, or a number with K, M, G or T: not %q", s)
	}
	return n * unit, nil
}

// boundFlag is a sizeFlag that tells whether it was given.
type boundFlag struct {
	sizeFlag
	given bool
}

func (f *boundFlag) Set(s string) error {
	f.given = true
	return f.sizeFlag.Set(s)
}

// countFlag is a number of things, 0 for any.
type countFlag int

func countVar(fl *pflag.FlagSet, p *int, name, short, usage string) {
	fl.VarP((*countFlag)(p), name, short, usage)
}

func (f *countFlag) String() string { return strconv.Itoa(int(*f)) }
func (f *countFlag) Type() string   { return "int" }

func (f *countFlag) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return fmt.Errorf("a whole number, 0 or more: not %q", s)
	}
	*f = countFlag(n)
	return nil
}

// someFlag is a number of things of which there must be some.
type someFlag struct{ *countFlag }

func someVar(fl *pflag.FlagSet, p *int, name, usage string) {
	fl.Var(someFlag{(*countFlag)(p)}, name, usage)
}

// Set refuses 0: a script that counted none does not mean all.
func (f someFlag) Set(s string) error {
	if err := f.countFlag.Set(s); err != nil || *f.countFlag == 0 {
		return fmt.Errorf("a whole number, 1 or more: not %q", s)
	}
	return nil
}

// freeFlag is how much of a filesystem must be free: a size, or a share as 5%.
type freeFlag session.MinFree

func (f *freeFlag) Type() string { return "size|N%" }

func (f *freeFlag) String() string {
	if f.Bytes == 0 {
		return fmt.Sprintf("%g%%", f.Percent)
	}
	return strconv.FormatInt(f.Bytes, 10)
}

// Set takes 5%, 2G, 0.
func (f *freeFlag) Set(s string) error {
	*f = freeFlag{}
	if share, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseFloat(share, 64)
		if err != nil || !(n >= 0 && n < 100) {
			return fmt.Errorf("a share is 0%% to 99%%: not %q", s)
		}
		f.Percent = n
		return nil
	}
	n, err := parseSize(s)
	f.Bytes = n
	return err
}
