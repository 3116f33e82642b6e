package agent

import (
	"context"
	"errors"

	"deployx/internal/wire"
	"deployx/shell"
	"deployx/snapshot"
)

// Codes of the wire that snapshot does not know.
const (
	codeBusyQueue    snapshot.Code = "busy_queue"
	codeInterrupted  snapshot.Code = "interrupted"
	codeTimeout      snapshot.Code = "timeout"
	codeUnauthorized snapshot.Code = "unauthorized" // not signed, badly signed, replayed, or another tree than allowed
)

func fail(code snapshot.Code, msg, hint string) error {
	return &snapshot.Error{Code: code, Msg: msg, Hint: hint}
}

var (
	errStopping    = fail(codeInterrupted, "the agent is being stopped", "send the request again when it is back")
	errInterrupted = fail(codeInterrupted, "interrupted before it ran", "")
	errRestarted   = fail(codeInterrupted, "the agent or the host stopped while the command ran; it was not run again",
		"its snapshot holds what it had done by then: roll it back, or send the command under a new id")
	// errLost is all that can be said of a command that may have begun just
	// before the host went down.
	errLost = fail(codeInterrupted, "the host went down while the command waited or began: nothing of it is in the tree, and it was not run again",
		"see whether it did anything elsewhere before sending it under a new id")
	// errNotNoted is why a command does not run whose request could not be kept.
	errNotNoted   = errors.New("the request could not be noted, so it was not run")
	errNotStarted = fail(codeInterrupted, "the agent or the host stopped before the command started; it did not run", "send the command under a new id")
)

// codeOf is the wire's word for an error.
func codeOf(err error) snapshot.Code {
	var shellErr *shell.NotFoundError
	code := snapshot.CodeOf(err)
	var e *snapshot.Error
	switch {
	case errors.As(err, &e) && code != snapshot.CodeFailedToStart:
	case errors.Is(err, context.Canceled):
		return codeInterrupted
	case errors.Is(err, context.DeadlineExceeded):
		return codeTimeout
	case errors.As(err, &shellErr), errors.Is(err, shell.ErrNUL):
		return snapshot.CodeFailedToStart
	}
	return code
}

// failure is an error as it goes over the wire.
func failure(err error) wire.Failure {
	f := wire.Failure{Code: string(codeOf(err)), Message: err.Error()}
	var e *snapshot.Error
	if errors.As(err, &e) {
		f.Processes, f.Paths = e.Holders, e.Paths
	}
	return f
}
