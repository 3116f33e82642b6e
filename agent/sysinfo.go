package agent

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"deployx/internal/durable"
	"deployx/internal/wire"
)

// machineID is /etc/machine-id (machine-id(5)) written as a UUID. A host
// without one gets one of its own, kept in dir.
func machineID(dir string) (string, error) {
	for _, name := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id", filepath.Join(dir, "machine-id")} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if id, err := uuid.Parse(strings.TrimSpace(string(b))); err == nil {
			return id.String(), nil
		}
	}
	id := uuid.NewString()
	return id, durable.Write(filepath.Join(dir, "machine-id"), []byte(id+"\n"))
}

// agentID is the name that backends in the field give a machine.
func agentID(machineID string) string {
	sum := sha256.Sum256([]byte(machineID))
	return "agent_" + hex.EncodeToString(sum[:4])
}

// systemInfo is best effort: what cannot be read stays empty.
func systemInfo(machineID, disk string) wire.SystemInfo {
	host, _ := os.Hostname() //nolint:errcheck // best effort
	var u unix.Utsname
	_ = unix.Uname(&u)
	fs := diskOf(disk)
	mem := readKeys("/proc/meminfo", ":")
	cpu := readKeys("/proc/cpuinfo", ":")
	osr := readKeys("/etc/os-release", "=")
	kib := func(name string) uint64 {
		n, _ := strconv.ParseUint(strings.TrimSuffix(mem[name], " kB"), 10, 64) //nolint:errcheck // best effort
		return n * 1024
	}
	ip, mac := address()
	return wire.SystemInfo{
		Hostname: host, OS: "Linux", OSVersion: strings.Trim(osr["PRETTY_NAME"], `"`), OSRelease: unix.ByteSliceToString(u.Release[:]),
		Architecture: unix.ByteSliceToString(u.Machine[:]), Processor: cpu["model name"], CPUCount: runtime.NumCPU(),
		MemoryTotal: kib("MemTotal"), MemoryAvailable: kib("MemAvailable"),
		DiskTotal: fs.Blocks * uint64(fs.Bsize), DiskFree: fs.Bavail * uint64(fs.Bsize),
		MachineID: machineID, IPAddress: ip, MACAddress: mac,
	}
}

// diskOf tells of the filesystem that path, or its nearest parent, is on.
func diskOf(path string) (fs unix.Statfs_t) {
	for unix.Statfs(path, &fs) != nil && path != "/" && path != "." {
		path = filepath.Dir(path)
	}
	return fs
}

// readKeys reads lines of KEY SEPARATOR VALUE; the first of equal keys counts.
func readKeys(name, separator string) map[string]string {
	keys := map[string]string{}
	b, err := os.ReadFile(name)
	if err != nil {
		return keys
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		k, v, ok := strings.Cut(s.Text(), separator)
		if k = strings.TrimSpace(k); ok && keys[k] == "" {
			keys[k] = strings.TrimSpace(v)
		}
	}
	return keys
}

// address is the first global address and the hardware address that goes with
// it, else those of loopback.
func address() (ip, mac string) {
	ip = "127.0.0.1"
	list, err := net.Interfaces()
	if err != nil {
		return ip, ""
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
				return n.IP.String(), i.HardwareAddr.String()
			}
		}
	}
	return ip, ""
}

// readToken reads a secret from a file that nobody else can read.
func readToken(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("token file %q can be used by others (mode %04o): chmod 600 it", name, fi.Mode().Perm())
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return "", fmt.Errorf("token file %q belongs to user %d: chown it to root", name, st.Uid)
	}
	b := make([]byte, 64<<10)
	n, err := f.Read(b)
	token := strings.TrimSpace(string(b[:n]))
	if token == "" {
		return "", errors.Join(fmt.Errorf("token file %q is empty", name), err)
	}
	return token, nil
}

// ReadSecret reads a small file that nobody but its owner, root or us, can
// read; else it is an error that says what to do.
func ReadSecret(name string) (string, error) { return readToken(name) }
