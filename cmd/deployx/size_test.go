package main

import (
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1048576": 1 << 20, "500M": 500 << 20, "2g": 2 << 30, "1KiB": 1 << 10, "3TiB": 3 << 40, "2Mib": 2 << 20,
		"": -1, "M": -1, "-1": -1, "1iB": -1, "1.5G": -1, "1MB": -1, "9999999T": -1, "1 M": -1,
	} {
		n, err := parseSize(s)
		if err != nil {
			n = -1
		}
		if n != want {
			t.Errorf("%q is %d, want %d (%v)", s, n, want, err)
		}
	}
}

func TestDurationFlag(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "0.5d": 12 * time.Hour, "-1h": -time.Hour, "-1d": -24 * time.Hour,
		"": -1, "d": -1, "banana": -1, "7": -1, "1d2h": -1, "NaNd": -1, "Infd": -1, "1e9d": -1,
	} {
		var f durationFlag
		err := f.Set(s)
		if got := time.Duration(f); want == -1 && err == nil || want != -1 && (err != nil || got != want) {
			t.Errorf("%q is %s, want %s (%v)", s, got, want, err)
		}
	}
}
