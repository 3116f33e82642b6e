package shell

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// feed copies a reader into a command's input.
type feed struct {
	w    *os.File
	wait *os.File      // see pipe.opened; may be nil
	done chan struct{} // closed by the copier
	halt func()        // ends a Read that waits; nil if there is no way
	free func()        // after the copier's end
	left []byte        // after stop: what was read and could not be written
}

// start waits for ready, copies r to f.w, then writes eof and closes f.w.
func (f *feed) start(r io.Reader, eof string, ready func()) *feed {
	f.done = make(chan struct{})
	r = f.stoppable(r)
	go func() {
		defer close(f.done)
		defer f.w.Close()
		ready()
		left, err := feedAll(f.w, r)
		if err == nil {
			io.WriteString(f.w, eof) // an error is the command's end
		}
		if f.halt != nil { // or nobody waits for this
			f.left = left
		}
		if f.wait != nil {
			f.wait.Read(make([]byte, 256)) // an inotify event; an error is the command's end
		}
	}()
	return f
}

// feedAll copies r to w until its end, and returns what it could not write.
func feedAll(w io.Writer, r io.Reader) (left []byte, err error) {
	for buf := make([]byte, 32<<10); ; {
		n, err := r.Read(buf)
		if m, err := w.Write(buf[:n]); err != nil {
			return buf[m:n], err
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// stop ends the feed. A Read that cannot be ended goes on: what it returns is
// lost, and the copier ends with it.
func (f *feed) stop() {
	f.w.Close()
	if f.wait != nil {
		f.wait.Close()
	}
	if f.halt != nil {
		f.halt()
		<-f.done
		f.free()
	}
}

// stoppable finds a way to end a Read of r that waits.
func (f *feed) stoppable(r io.Reader) io.Reader {
	if d, ok := r.(interface{ SetReadDeadline(time.Time) error }); ok && d.SetReadDeadline(time.Time{}) == nil {
		f.halt = func() { d.SetReadDeadline(time.Unix(1, 0)) }
		f.free = func() { d.SetReadDeadline(time.Time{}) }
		return r
	}
	file, ok := r.(*os.File)
	var fds [2]int
	if !ok || unix.Pipe2(fds[:], unix.O_CLOEXEC) != nil {
		return r
	}
	f.halt = func() { unix.Close(fds[1]) }
	f.free = func() { unix.Close(fds[0]) }
	return struct{ io.Reader }{&polled{file, fds[0]}} // hides WriteTo, which would not poll
}

// polled reads a file that knows no deadline, such as a terminal. Nothing is read
// once halt was called, so that what is typed next is left for others.
type polled struct {
	*os.File
	halted int // readable when halt was called
}

func (f *polled) Read(p []byte) (n int, err error) {
	err = control(f.File, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(f.halted), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if fds[1].Revents != 0 {
			return os.ErrClosed
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return f.File.Read(p)
}
