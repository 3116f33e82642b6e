//go:build !amd64

package faults

import "golang.org/x/sys/unix"

func withOld(m Calls) Calls { return m }

const sysFstatat = unix.SYS_FSTATAT
