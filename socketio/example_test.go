package socketio_test

import (
	"context"
	"fmt"
	"net/http/httptest"

	"deployx/socketio"
)

// A client and a server in one process.
func Example() {
	server := socketio.NewServer(socketio.ServerConfig{})
	server.Of("/").On("greet", func(_ *socketio.Socket, e *socketio.Event) {
		if err := e.Ack(context.Background(), "hello", e.Arg(0)); err != nil {
			fmt.Println(err)
		}
	})
	h := httptest.NewServer(server)
	defer h.Close()
	defer func() { _ = server.Close() }()

	client, err := socketio.New(socketio.Config{URL: h.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	client.OnConnect(func(ctx context.Context, _ socketio.Connection) {
		answer, err := client.EmitAck(ctx, "greet", 12345678901234567)
		if err != nil {
			fmt.Println(err)
		}
		fmt.Printf("%s\n", answer.Args)
		cancel()
	})
	_ = client.Run(ctx) // until ctx ends
	// Output: ["hello" 12345678901234567]
}
