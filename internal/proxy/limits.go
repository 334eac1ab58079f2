package proxy

import (
	"time"

	"meshd/internal/wire"
)

// Every buffer, queue and wait of the data path has its bound here.
const (
	// readChunk is the most that is read from an application at once. Two such
	// reads fit a stream's credit, so one read never has to be parked whole.
	readChunk = 64 << 10
	// readsPerRun bounds how long one busy connection holds the loop.
	readsPerRun = 4
	// outHigh is how much may wait to be written to an application before the
	// side that gives the bytes has to stop. It equals the credit of a stream:
	// what a peer was allowed to send must find room.
	outHigh = wire.InitialCredit
	// linkHigh is how much may wait on a link (all streams together) before
	// its streams get no more room; at linkLow they get it back.
	linkHigh = 512 << 10
	linkLow  = 128 << 10
	// linkMax cuts a link whose peer does not read. Heads, resets and grants
	// are put on a link without asking for room: a thousand requests with heads
	// of 8 KiB must fit, a peer that only asks must not fill our memory.
	linkMax = 16 << 20
	// creditStep is how much must have been delivered before it is granted
	// again: a quarter of the window, so that credit costs one small frame per
	// 64 KiB and the sender never runs dry on a link without delay.
	creditStep = wire.InitialCredit / 4

	// headerTimeout is how long a client may take for one request head after
	// its first byte.
	headerTimeout = 10 * time.Second
	// handshakeTimeout bounds a TLS handshake that a peer opened.
	handshakeTimeout = 10 * time.Second
	// dialTimeout bounds connect and handshake when connect_timeout is off.
	dialTimeout = 10 * time.Second
	// lingerTimeout is how long a connection that was answered before its
	// request was complete is still read, so that closing it does not destroy
	// the answer on its way (RFC 9112 section 9.6).
	lingerTimeout = 2 * time.Second
	// unreadTimeout is how long a client may leave the end of a finished answer
	// unread without taking a byte.
	unreadTimeout = 60 * time.Second
	// lingerBytes is how much of such a request is read and thrown away.
	lingerBytes = 256 << 10

	// maxHandshakes is how many TLS handshakes run at a time in each direction;
	// further peers wait in the kernel's backlog. The directions are counted
	// apart: whoever can reach the peer port must not keep us from dialling.
	maxHandshakes = 256
	// When scarceHandshakes of those that peers began go on, the rest is for
	// addresses with less than maxHandshakesFrom: whoever connects and says
	// nothing must not keep others out.
	scarceHandshakes  = maxHandshakes * 3 / 4
	maxHandshakesFrom = maxHandshakes / 4
	// maxAttempts is how many endpoints are tried for one exchange as long as
	// nothing was sent.
	maxAttempts = 3
	// maxLinksPerTarget bounds the links of one loop to one peer for one pair
	// of services; another is opened when all carry streamsPerLink streams.
	maxLinksPerTarget = 4
	streamsPerLink    = 1024
	// maxStreamsPerLink leaves a margin below what the codec can number.
	maxStreamsPerLink = wire.MaxStreams - 1
	// linkBytes retires a link: Go's TLS never updates its keys, and AES-GCM
	// should not protect more than this under one key (RFC 8446 section 5.5
	// allows 2^24.5 records of 16 KiB, which is just over 256 GiB).
	linkBytes = 256 << 30
	// tlsRecord is the most that one read of crypto/tls can give (RFC 8446
	// section 5.1).
	tlsRecord = 16 << 10
	// linkIdle closes a link that carried no stream for so long. The side that
	// dialled does, which knows that no stream is about to begin; acceptedIdle is
	// when the other side stops waiting for that.
	linkIdle     = 5 * time.Minute
	acceptedIdle = 2 * linkIdle
	// maxAccepted is how many links of one loop peers may have opened. Beyond it
	// the one that was idle for longest makes room: whoever has a certificate of
	// the mesh can dial as often as he likes, also where he is denied.
	maxAccepted = 4096
	// pingAfter is the silence after which a link with streams is probed,
	// deadAfter the silence after which it is given up.
	pingAfter = 2 * time.Second
	deadAfter = 6 * time.Second
	// pingIdle probes links without streams, which cost nobody anything yet.
	pingIdle = 30 * time.Second

	// probeTime is how long a TCP connection that probes a half-open endpoint
	// must live to count as a success when nobody says anything on it. It is
	// longer than the called side takes to find that its application is away.
	probeTime = 5 * time.Second
	// goawayGrace is how long a draining host that has nothing left to do waits
	// for its peers to close the links it said goaway on: a request may be on
	// its way.
	goawayGrace = time.Second
	// denyGrace is how long streams go on that a new picture denies: a request
	// that is nearly done may finish, and together with what it takes to hear of
	// the change whoever was shut out is out within a second.
	denyGrace = 500 * time.Millisecond
	// dialLogEvery spaces the log lines about one peer that cannot be linked to.
	dialLogEvery = time.Second
	// closeWait bounds how long Prepare waits for a loop to close a listener
	// whose address is wanted again.
	closeWait = time.Second

	// poolIdle is how long a connection to a local application is kept for the
	// next request, poolSize how many of them per service and loop.
	poolIdle = 60 * time.Second
	poolSize = 512
	// acceptBatch is how many connections one listener accepts before others
	// get their turn; acceptPause is the wait after an error of the host
	// (descriptors, memory) that another accept would only repeat.
	acceptBatch = 64
	acceptPause = 100 * time.Millisecond
	// maxTurnRounds bounds the rounds of running and flushing in one turn.
	maxTurnRounds = 8
	// cipherRead is how much is read from a link with one system call.
	cipherRead = 256 << 10
	// overloadLoad is the load above which a loop passes new connections on.
	overloadLoad = 0.7
)
