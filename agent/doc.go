// Package agent is the side of the wire protocol that runs on the host: it
// takes requests from a backend, has trees carry them out, and sees to it that
// nothing is done twice and no result is lost.
//
// It is not for transport (package socketio) and not for what a command or a
// rollback is (package session, reached through the interface Session). It
// imports no driver. docs/protocol.md tells every event.
//
// Inside: a request is decoded strictly (decode.go), authorised (sign.go,
// trees.go), noted in the journal (journal.go) and put in its tree's queue
// (queue.go). Output streams from a bounded spool (stream.go); results go
// through the outbox (outbox.go), which is the journal read again.
package agent
