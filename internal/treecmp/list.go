package treecmp

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// unknown is the type of what is none of find(1)'s, or not told.
const unknown = '?'

type listed struct {
	name string
	kind byte
}

// list reads the directory fd to its end. It is not os.ReadDir, which leaves
// out what it cannot stat by the directory's name.
func list(fd int, buf []byte) ([]listed, error) {
	var all []listed
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return all, nil
		}
		all = append(all, records(buf[:n])...)
	}
}

// records takes linux_dirent64 records apart: inode and offset of 8 bytes
// each, record length of 2, type of 1, name to the first zero, getdents(2).
func records(b []byte) (all []listed) {
	const lengthAt, typeAt, nameAt = 16, 18, 19
	for len(b) > 0 {
		length := binary.NativeEndian.Uint16(b[lengthAt:])
		name, _, _ := bytes.Cut(b[nameAt:length], []byte{0})
		if s := string(name); s != "." && s != ".." {
			all = append(all, listed{s, typeOf(uint32(b[typeAt]) << 12)})
		}
		b = b[length:]
	}
	return all
}
