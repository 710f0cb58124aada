// A program as kernel_layout.c, in Go: its runtime makes system calls without a C library, from many threads, and
// interrupts these by signals.
//
//	control SERVER PORT LOCAL LOCAL-PORT REMOTE REMOTE-PORT      prints what kernel_layout prints
//	control storm COUNT SERVER PORT LOCAL REMOTE REMOTE-PORT     opens COUNT subflows while signals rain on every thread
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const (
	getSubIds     = 66
	closeSubId    = 67
	getSubTuple   = 68
	openSubTuple  = 69
	subGetsockopt = 71
	subSetsockopt = 72
)

type sockopt struct {
	id     uint8
	level  int32
	name   int32
	optval unsafe.Pointer
	optlen uintptr
}

func die(what string, err error) {
	fmt.Fprintln(os.Stderr, what, err)
	os.Exit(1)
}

func must(what string, errno syscall.Errno) {
	if errno != 0 {
		die(what, errno)
	}
}

var connection syscall.RawConn

func get(name int, buffer unsafe.Pointer, length uint32) (uint32, syscall.Errno) {
	var errno syscall.Errno
	connection.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.IPPROTO_TCP, uintptr(name),
			uintptr(buffer), uintptr(unsafe.Pointer(&length)), 0)
	})
	return length, errno
}

func list() (ids []int, established map[int]bool) {
	var buffer [512]byte
	length, errno := get(getSubIds, unsafe.Pointer(&buffer), uint32(len(buffer)))
	must("MPTCP_GET_SUB_IDS", errno)
	established = map[int]bool{}
	for at := 2; at < int(length); at += 2 {
		ids = append(ids, int(buffer[at]))
		established[int(buffer[at])] = buffer[at+1]&2 != 0
	}
	return
}

func print() (ids []int) {
	ids, _ = list()
	for _, id := range ids {
		fmt.Println("Subflow id :", id)
	}
	return
}

func put(bytes []byte, host, port string) {
	binary.LittleEndian.PutUint16(bytes, syscall.AF_INET)
	number, err := strconv.Atoi(port)
	if err != nil {
		die("port", err)
	}
	binary.BigEndian.PutUint16(bytes[2:], uint16(number))
	copy(bytes[4:8], net.ParseIP(host).To4())
}

func open(local, localPort, remote, remotePort string) syscall.Errno {
	var tuple [33]byte
	put(tuple[1:], local, localPort)
	put(tuple[17:], remote, remotePort)
	_, errno := get(openSubTuple, unsafe.Pointer(&tuple), uint32(len(tuple)))
	return errno
}

// Waits until a subflow that was not there before is accepted.
func accepted(before map[int]bool) int {
	for {
		ids, established := list()
		for _, id := range ids {
			if _, known := before[id]; !known && established[id] {
				return id
			}
		}
	}
}

func end(what string, bytes []byte) {
	fmt.Printf("\tip %s : %s %s port : %d\n", what, net.IP(bytes[4:8]), what, binary.BigEndian.Uint16(bytes[2:]))
}

func pause(stage string) {
	fmt.Println("--", stage)
	bufio.NewReader(os.Stdin).ReadString('\n')
}

func control(local, localPort, remote, remotePort string) {
	print()
	_, before := list()
	must("MPTCP_OPEN_SUB_TUPLE", open(local, localPort, remote, remotePort))
	id := accepted(before)
	fmt.Println("opened :", id)
	for _, id := range print() {
		tuple := [100]byte{byte(id)}
		_, errno := get(getSubTuple, unsafe.Pointer(&tuple), uint32(len(tuple)))
		must("MPTCP_GET_SUB_TUPLE", errno)
		fmt.Println("Subflow", id)
		end("src", tuple[1:])
		end("dst", tuple[17:])
	}
	failed := 0
	var info [512]byte
	length := uint32(len(info))
	request := sockopt{uint8(id), syscall.IPPROTO_TCP, syscall.TCP_INFO, unsafe.Pointer(&info), uintptr(unsafe.Pointer(&length))}
	_, errno := get(subGetsockopt, unsafe.Pointer(&request), uint32(unsafe.Sizeof(request)))
	must("MPTCP_SUB_GETSOCKOPT", errno)
	mss := binary.LittleEndian.Uint32(info[16:])
	fmt.Printf("TCP_INFO of %d: length %d state %d snd_mss %d\n", id, length, info[0], mss)
	tos := int32(0x10)
	request = sockopt{uint8(id), syscall.IPPROTO_IP, syscall.IP_TOS, unsafe.Pointer(&tos), 4}
	connection.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall6(syscall.SYS_SETSOCKOPT, fd, syscall.IPPROTO_TCP, subSetsockopt,
			uintptr(unsafe.Pointer(&request)), unsafe.Sizeof(request), 0)
	})
	if errno != 0 {
		fmt.Fprintln(os.Stderr, "MPTCP_SUB_SETSOCKOPT(IP_TOS):", errno)
		failed = 1
	} else {
		fmt.Printf("IP_TOS of %d: set to %d\n", id, tos)
	}
	pause("open")
	closing := byte(id)
	_, errno = get(closeSubId, unsafe.Pointer(&closing), 1)
	must("MPTCP_CLOSE_SUB_ID", errno)
	fmt.Println("closed :", id)
	print()
	pause("closed")
	os.Exit(failed)
}

// Every open is to be done once, though signals interrupt the calls.
func storm(count int, local, remote, remotePort string) {
	var over atomic.Bool
	var sent atomic.Int64
	for i := 0; i < 2; i++ {
		go func() {
			for !over.Load() {
				syscall.Kill(os.Getpid(), syscall.SIGURG)
				sent.Add(1)
			}
		}()
	}
	for i := 0; i < count; i++ {
		_, before := list()
		must("MPTCP_OPEN_SUB_TUPLE", open(local, "0", remote, remotePort))
		accepted(before)
	}
	ids, _ := list()
	over.Store(true)
	fmt.Println(len(ids), sent.Load())
	pause("open")
}

func dial(host, port string) {
	conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		die("dial", err)
	}
	if connection, err = conn.(*net.TCPConn).SyscallConn(); err != nil {
		die("SyscallConn", err)
	}
	byteEachWay := []byte{'x'}
	if _, err = conn.Write(byteEachWay); err != nil {
		die("write", err)
	}
	if _, err = conn.Read(byteEachWay); err != nil {
		die("read", err)
	}
}

func main() {
	arguments := os.Args[1:]
	if arguments[0] == "storm" {
		count, err := strconv.Atoi(arguments[1])
		if err != nil {
			die("count", err)
		}
		dial(arguments[2], arguments[3])
		storm(count, arguments[4], arguments[5], arguments[6])
		return
	}
	dial(arguments[0], arguments[1])
	control(arguments[2], arguments[3], arguments[4], arguments[5])
}
