package session

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"dhow/internal/errdef"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// The agent protocol (draft-ietf-sshm-ssh-agent-05): both sides send messages
// of a length of four bytes, a type of one, and a body. The client asks, the
// agent answers.
//
//	11 request identities  →  12 the keys
//	13 sign                →  14 a signature
//	   anything else       →   5 failure
const (
	agentFailure      = 5
	agentList         = 11
	agentKeys         = 12
	agentSign         = 13
	agentSignature    = 14
	maxAgentMessage   = 256 << 10       // bytes; OpenSSH's own bound
	agentDialTimeout  = 2 * time.Second // to connect to an agent on this machine
	agentHeaderLength = 4
)

// SSHAgent opens a fresh connection to the agent of that id ("" is DefaultSSH).
// Unless the source is raw, keys can be listed and used for signing and nothing
// else: a build step must not be able to remove or lock the user's keys, or
// plant one. The caller closes it. ErrNotFound when the build was given no such
// agent, ErrUnavailable when the socket does not answer.
func (s *Local) SSHAgent(ctx context.Context, id string) (net.Conn, error) {
	a, err := s.agent(id)
	if err != nil {
		return nil, err
	}
	if a.keys != nil {
		return serveAgent(func(msg []byte) ([]byte, error) { return answer(a.keys, msg), nil }, nil), nil
	}
	d := net.Dialer{Timeout: agentDialTimeout}
	conn, err := d.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return nil, errdef.New(errdef.ErrUnavailable, "connect to the ssh agent %s: %w", a.id, err)
	}
	if a.raw {
		return conn, nil
	}
	return serveAgent(func(msg []byte) ([]byte, error) { return pass(conn, msg) }, conn), nil
}

// serveAgent answers on one end of a pipe. It ends when the returned end is
// closed, and closes behind then.
func serveAgent(reply func(msg []byte) ([]byte, error), behind io.Closer) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		if behind != nil {
			defer behind.Close()
		}
		for {
			msg, err := readMessage(ours)
			if err != nil {
				return // the end of the connection, however it came
			}
			out := []byte{agentFailure}
			if msg[0] == agentList || msg[0] == agentSign {
				if out, err = reply(msg); err != nil {
					return
				}
			}
			if writeMessage(ours, out) != nil {
				return
			}
		}
	}()
	return theirs
}

// pass hands a question on to an agent and returns its answer.
func pass(to io.ReadWriter, msg []byte) ([]byte, error) {
	if err := writeMessage(to, msg); err != nil {
		return nil, err
	}
	return readMessage(to)
}

func readMessage(r io.Reader) ([]byte, error) {
	var head [agentHeaderLength]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxAgentMessage {
		return nil, errdef.New(errdef.ErrInvalid, "ssh agent: got a message of %d bytes, want 1 to %d", n, maxAgentMessage)
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeMessage(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(msg))), msg...))
	return err
}

// answer is what an agent that holds the keys says.
func answer(keys agent.ExtendedAgent, msg []byte) []byte {
	switch msg[0] {
	case agentList:
		list, err := keys.List()
		if err != nil {
			return []byte{agentFailure}
		}
		out := binary.BigEndian.AppendUint32([]byte{agentKeys}, uint32(len(list)))
		for _, k := range list {
			out = append(out, ssh.Marshal(struct {
				Blob    []byte
				Comment string
			}{k.Blob, k.Comment})...)
		}
		return out
	case agentSign:
		if out, ok := sign(keys, msg[1:]); ok {
			return out
		}
	}
	return []byte{agentFailure}
}

// sign answers a request for a signature. The flags keep RSA keys on SHA-2:
// without them SHA-1 is meant, which servers refuse since OpenSSH 8.8.
func sign(keys agent.ExtendedAgent, body []byte) ([]byte, bool) {
	var req struct {
		Key   []byte
		Data  []byte
		Flags uint32
	}
	if ssh.Unmarshal(body, &req) != nil {
		return nil, false
	}
	key, err := ssh.ParsePublicKey(req.Key)
	if err != nil {
		return nil, false
	}
	sig, err := keys.SignWithFlags(key, req.Data, agent.SignatureFlags(req.Flags))
	if err != nil {
		return nil, false
	}
	return append([]byte{agentSignature}, ssh.Marshal(struct{ Signature []byte }{ssh.Marshal(sig)})...), true
}
