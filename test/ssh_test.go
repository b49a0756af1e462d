package test

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"
)

// cmdSSHServer starts an ssh server on loopback for the real ssh program, with a
// throw-away key on both sides. Its commands run with the store in the directory,
// and with the dhow under test in PATH. It sets SSH_HOST to USER@HOST:PORT, and
// DHOW_SSH to a program that knows key and host: sshserver DIR
func cmdSSHServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sshserver DIR")
	}
	_, hostKey, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	host, err := ssh.NewSignerFromKey(hostKey)
	ts.Check(err)
	_, userKey, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	user, err := ssh.NewSignerFromKey(userKey)
	ts.Check(err)
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, errors.New("another key")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	env := append(os.Environ(), "DHOW_ROOT="+ts.MkAbs(args[0]), "PATH="+shared.bin+":"+os.Getenv("PATH"), "HOME="+ts.Getenv("HOME"), "XDG_RUNTIME_DIR="+ts.Getenv("XDG_RUNTIME_DIR"))
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveSSH(conn, config, env)
		}
	}()
	block, err := ssh.MarshalPrivateKey(userKey, "")
	ts.Check(err)
	key, known, program := ts.MkAbs(".ssh-user"), ts.MkAbs(".ssh-known"), ts.MkAbs(".ssh-program")
	ts.Check(os.WriteFile(key, pem.EncodeToMemory(block), 0o600))
	port := l.Addr().(*net.TCPAddr).Port
	line := fmt.Sprintf("[127.0.0.1]:%d %s", port, ssh.MarshalAuthorizedKey(host.PublicKey()))
	ts.Check(os.WriteFile(known, []byte(line), 0o600))
	script := fmt.Sprintf("#!/bin/sh\nexec ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -i %s -o UserKnownHostsFile=%s \"$@\"\n", key, known)
	ts.Check(os.WriteFile(program, []byte(script), 0o700))
	ts.Setenv("DHOW_SSH", program)
	ts.Setenv("SSH_HOST", fmt.Sprintf("somebody@127.0.0.1:%d", port))
}

// serveSSH runs the commands of one connection.
func serveSSH(conn net.Conn, config *ssh.ServerConfig, env []string) {
	defer conn.Close()
	server, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				_ = r.Reply(r.Type == "exec", nil) // a client that is gone needs none
				if r.Type == "exec" {
					go runSSH(channel, string(r.Payload[4:]), env)
				}
			}
		}()
	}
}

func runSSH(channel ssh.Channel, command string, env []string) {
	defer channel.Close()
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	in, err := cmd.StdinPipe()
	if err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(in, channel)
		in.Close()
	}()
	status := 0
	if err := cmd.Run(); err != nil {
		status = 255
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		}
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
}
