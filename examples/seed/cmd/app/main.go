// Command app says who it runs as: the smallest program that shows that the
// final image has the binary, the user and nothing of the build stage.
package main

import (
	"fmt"
	"os"
)

func main() {
	_, err := os.Stat("/usr/local/go")
	fmt.Printf("hello from uid %d; toolchain in this image: %t\n", os.Getuid(), err == nil)
}
