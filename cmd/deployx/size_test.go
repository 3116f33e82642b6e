package main

import "testing"

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
