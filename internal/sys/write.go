package sys

import "golang.org/x/sys/unix"

// WriteAll writes b at the descriptor's place, however many calls that takes.
// Errors are the kernel's numbers.
func WriteAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// WriteAllAt is WriteAll at an offset, which leaves the descriptor's place alone.
func WriteAllAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
