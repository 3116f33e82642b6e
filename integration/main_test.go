package integration

import (
	"testing"

	"deployx/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }
