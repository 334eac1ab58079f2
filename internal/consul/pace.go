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
	// answer bounds a request that Consul does not hold. With the longest
	// backoff it is under the 5 s in which a watch has to be well again after
	// a fault that swallowed its query.
	answer time.Duration
	// patient replaces answer while nothing at all is known, or when many
	// tries in a row failed: a Consul that is slow for good is better than none.
	patient time.Duration
	// sign bounds the first request for a leaf: the agent makes a key, and the
	// servers sign 50 requests a second at most for a whole datacenter.
	sign time.Duration
	// poll is the time between two looks at the agent's own services, which
	// cannot be watched. Each is jittered by a fifth.
	poll time.Duration
	// query is the least time between two executions of a prepared query,
	// which cannot be watched either. Each is up to twice that.
	query time.Duration
	// files is the time between two looks at token and TLS files.
	files time.Duration
	// pulse is the time between two questions whether Consul is there and has
	// a leader, pulseBad while the answer is no or comes later than pulseLimit.
	// One question for all watches is what lets them wait a minute: when the
	// answer turns good again, each asks anew instead of waiting for something
	// that was lost on the way.
	pulse, pulseBad, pulseLimit time.Duration
	// spread is how far those new questions are spread.
	spread time.Duration
	// backoffFirst doubles with every failure in a row up to backoffMost; a
	// pause is between half of that and all of it. Most is small so that a mesh
	// heals within 5 s of its registry, and large enough for less than a query
	// a second.
	backoffFirst, backoffMost time.Duration
	// backoffRefused replaces backoffMost when Consul refuses (4xx): only an
	// operator changes that, who then looks whether it helped.
	backoffRefused time.Duration
	// plain is how long after a failure the agent is not asked to answer from
	// its stream: its own backoff after an outage goes up to a minute, and
	// until then a held query would hear of nothing.
	plain time.Duration
	// refill is the time a watch earns one query in, when it has used its
	// burst. A removal has to be known at once in the middle of a deployment
	// too.
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
	grace:          5 * time.Second,
	answer:         2500 * time.Millisecond,
	patient:        10 * time.Second,
	sign:           30 * time.Second,
	poll:           10 * time.Second,
	query:          10 * time.Second,
	files:          time.Second,
	pulse:          2 * time.Second,
	pulseBad:       time.Second,
	pulseLimit:     1500 * time.Millisecond,
	spread:         500 * time.Millisecond,
	backoffFirst:   500 * time.Millisecond,
	backoffMost:    2 * time.Second,
	backoffRefused: 4 * time.Second,
	plain:          3 * time.Minute,
	refill:         100 * time.Millisecond,
	refillIdle:     2 * time.Second,
	settle:         30 * time.Second,
}

// held returns how long a query held for the given wait may take.
func (p *pace) held(wait time.Duration) time.Duration { return wait + wait/16 + p.grace }

// backoff returns how long to wait after the given number of failures in a row
// (1 or more): exponential, and jittered, so that the agents of a datacenter do
// not come back in step.
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
	return d/2 + rand.N(d/2+1)
}

const (
	// burst is how many queries a watch may make at once before it has to
	// wait. One registration reaches the catalog as up to three changes: the
	// instance and its checks.
	burst = 4
	// idleAnswers is as many as a deployment of a few instances makes that
	// change nothing yet. Those whose index stands count a quarter of it each.
	idleAnswers = 4 * burst
	// manyFailures in a row, more than a minute of them, and every other query
	// is a patient one.
	manyFailures = 20
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
