package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	fmt.Println("go says:", strings.Join(os.Args[1:], " "))
}
