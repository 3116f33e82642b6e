package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestChart: a chart is well-formed, leaves out what has no value, and draws ten
// times the time one decade longer, whatever a method is called.
func TestChart(t *testing.T) {
	name := filepath.Join(t.TempDir(), "chart.svg")
	all := []figure{
		{Method: "a <b> & \"c\"", Files: 100, Run: time.Millisecond},
		{Method: "DeployX", Files: 100, Run: 10 * time.Millisecond},
		{Method: "nothing", Files: 100},
		{Method: "DeployX", Files: 10_000, Run: 100 * time.Millisecond},
	}
	if err := chart(name, "A & B", all, func(f figure) time.Duration { return f.Run }); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // read only
	var widths []float64
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		for i := 0; ok && e.Name.Local == "rect" && i < len(e.Attr); i++ {
			if e.Attr[i].Name.Local == "width" {
				w, err := strconv.ParseFloat(e.Attr[i].Value, 64)
				if err != nil {
					t.Fatal(err)
				}
				widths = append(widths, w)
			}
		}
	}
	if len(widths) != 3 || widths[0] <= 0 {
		t.Fatalf("bars: %v", widths)
	}
	if a, b := widths[1]-widths[0], widths[2]-widths[1]; a < b-1 || a > b+1 || a < plotWidth/5 {
		t.Errorf("decades of %v and %v pixels", a, b)
	}
}
