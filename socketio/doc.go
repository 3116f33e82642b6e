// Package socketio speaks Socket.IO protocol revision 5 over Engine.IO protocol
// revision 4, as a client ([Client]) and as a server ([Server]).
//
// It moves events and acknowledgements, and nothing else: it has no idea of
// what an event means, it never logs, and it keeps nothing on disk. It is not
// for Socket.IO 2 servers (Engine.IO 3), for JSONP or WebTransport, for
// clusters of servers, or for events that must survive a lost connection: what
// was written to a connection that then broke may be lost, and whoever cannot
// bear that sends with [Client.EmitAck] and sends again.
//
// # Terms
//
// A frame is one Engine.IO packet, a packet is one Socket.IO packet (a text
// frame and the binary frames of its attachments). A connection is one Engine.IO
// session joined to one namespace; a client has many connections, one after the
// other.
//
// # Sources
//
// The protocols are told at github.com/socketio/engine.io-protocol (v4) and
// github.com/socketio/socket.io-protocol (v5). Where the comments say "Node" or
// "Python" they mean what socket.io 4.8 and python-socketio 5.7 do in fact.
package socketio
