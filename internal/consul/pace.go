package consul

import (
	"math/rand/v2"
	"time"
)

// pace holds every duration of the room, so that tests can be in a hurry.
type pace struct {
	// wait is how long Consul may hold a query that has nothing new. Its own
	// default is 5 minutes; a minute lets a dead agent show within about 75 s
	// and costs next to nothing on a loopback connection.
	wait time.Duration
	// grace is added to wait + wait/16 (the jitter Consul adds) before the
	// client gives up on a held query.
	grace time.Duration
	// answer bounds a request that Consul does not hold.
	answer time.Duration
	// sign bounds the first request for a leaf: the agent makes a key, and the
	// servers sign 50 requests a second at most for a whole datacenter.
	sign time.Duration
	// poll is the time between two looks at the agent's own services, which
	// cannot be watched. Each is jittered by a fifth.
	poll time.Duration
	// backoffFirst doubles with every failure in a row up to backoffMost. Most
	// is small so that a mesh heals within 5 s of its registry: the agent is
	// on this host and nobody else waits for it.
	backoffFirst, backoffMost time.Duration
	// backoffRefused replaces backoffMost when Consul refuses (4xx): only an
	// operator changes that.
	backoffRefused time.Duration
	// refill is the time a watch earns one query in, when it has used its
	// burst. A removal has to be known within a second in the middle of a
	// deployment too, so it is well below that.
	refill time.Duration
	// refillIdle replaces refill after idleAnswers that came at once and
	// brought nothing: an index that turns in place must not make a busy loop.
	refillIdle time.Duration
	// settle is how long a removal is held after the registry's index went
	// back: others need a poll to register again.
	settle time.Duration
}

var defaultPace = pace{
	wait:           time.Minute,
	grace:          10 * time.Second,
	answer:         10 * time.Second,
	sign:           30 * time.Second,
	poll:           10 * time.Second,
	backoffFirst:   500 * time.Millisecond,
	backoffMost:    5 * time.Second,
	backoffRefused: 30 * time.Second,
	refill:         250 * time.Millisecond,
	refillIdle:     time.Second,
	settle:         30 * time.Second,
}

// held returns how long a held query may take.
func (p *pace) held() time.Duration { return p.wait + p.wait/16 + p.grace }

// backoff returns how long to wait after the given number of failures in a row
// (1 or more): exponential with full jitter, so that the agents of a datacenter
// do not come back in step.
func (p *pace) backoff(failures int, refused bool) time.Duration {
	most := p.backoffMost
	if refused {
		most = p.backoffRefused
	}
	d := most
	// 20 doublings of any sane first step are past any sane most.
	if failures <= 20 {
		d = min(p.backoffFirst<<(failures-1), most)
	}
	return rand.N(d) + 1
}

const (
	// burst is how many queries a watch may make at once before it has to
	// wait. One registration reaches the catalog as up to three changes: the
	// instance and its checks.
	burst = 4
	// idleAnswers is two bursts.
	idleAnswers = 8
)

// bucket is a token bucket for one watch. The zero value is empty.
type bucket struct {
	tokens float64
	last   time.Time
}

func newBucket(now time.Time) bucket { return bucket{tokens: burst, last: now} }

// take returns 0 and takes a token, or how long to wait before asking again.
func (b *bucket) take(now time.Time, refill time.Duration) time.Duration {
	if passed := now.Sub(b.last); passed > 0 {
		b.tokens = min(b.tokens+float64(passed)/float64(refill), burst)
	}
	b.last = now
	if b.tokens >= 1 {
		b.tokens--
		return 0
	}
	return max(time.Duration((1-b.tokens)*float64(refill)), 1)
}
