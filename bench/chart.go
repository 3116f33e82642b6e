package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// Sizes of a chart, in pixels.
const (
	labelWidth = 230
	plotWidth  = 420
	valueWidth = 90
	rowHeight  = 20
	headHeight = 56
)

// style suits a light and a dark page: a picture in a page follows the reader's
// setting.
const style = `<style>
text { font: 12px sans-serif; fill: #1f2328 }
.title { font-weight: bold }
.grid { stroke: #1f232833 }
.bar { fill: #8c959f }
.ours { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.grid { stroke: #e6edf333 }
.bar { fill: #6e7681 }
.ours { fill: #3fb950 }
}
</style>
`

// chart draws bars, a group for each size of tree, on a logarithmic scale.
// Methods without a value are left out.
func chart(name, title string, all []figure, value func(figure) time.Duration) error {
	all = slices.DeleteFunc(slices.Clone(all), func(f figure) bool { return value(f) == 0 })
	if len(all) == 0 {
		return nil
	}
	s := newScale(all, value)
	var b strings.Builder
	height := headHeight + rowHeight*(len(all)+2*s.groups(all))
	width := labelWidth + plotWidth + valueWidth
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\">\n", width, height, width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n%s<text class=\"title\" x=\"8\" y=\"18\">%s</text>\n", text(title), style, text(title))
	s.grid(&b, height)
	y, files := headHeight, -1
	for _, f := range all {
		if f.Files != files {
			y += rowHeight
			fmt.Fprintf(&b, "<text class=\"title\" x=\"8\" y=\"%d\">%d files</text>\n", y-6, f.Files)
			files = f.Files
			y += rowHeight / 4
		}
		bar(&b, s, y, f, value(f))
		y += rowHeight
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

func bar(b *strings.Builder, s scale, y int, f figure, d time.Duration) {
	class := "bar"
	if strings.HasPrefix(f.Method, "DeployX") {
		class = "bar ours"
	}
	x := s.at(d)
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labelWidth-8, y+10, text(f.Method))
	fmt.Fprintf(b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>\n", class, labelWidth, y, x-labelWidth, rowHeight-6)
	fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", x+5, y+10, text(short(d)))
}

// scale maps durations to pixels, from a power of ten to a power of ten.
type scale struct{ low, high float64 }

func newScale(all []figure, value func(figure) time.Duration) scale {
	s := scale{math.Inf(1), math.Inf(-1)}
	for _, f := range all {
		l := math.Log10(value(f).Seconds() * 1e3)
		s.low, s.high = min(s.low, math.Floor(l-0.01)), max(s.high, math.Ceil(l))
	}
	return s
}

func (s scale) at(d time.Duration) float64 {
	return labelWidth + (math.Log10(d.Seconds()*1e3)-s.low)/(s.high-s.low)*plotWidth
}

func (s scale) groups(all []figure) int {
	sizes := map[int]bool{}
	for _, f := range all {
		sizes[f.Files] = true
	}
	return len(sizes)
}

func (s scale) grid(b *strings.Builder, height int) {
	for e := s.low; e <= s.high; e++ {
		x := labelWidth + (e-s.low)/(s.high-s.low)*plotWidth
		fmt.Fprintf(b, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", x, x, headHeight-10, height-8)
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", x, headHeight-16, math.Pow(10, e))
	}
}

func text(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) //nolint:errcheck // a Builder takes everything
	return b.String()
}
