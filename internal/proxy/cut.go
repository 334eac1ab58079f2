package proxy

import "meshd/internal/loop"

// A picture may take a permission away while streams run. New streams are
// refused from the loop's next turn on (see link.accept); those that run are
// cut after denyGrace. A link whose peer may not talk to any instance any more
// says goaway, so that the caller's next request shakes hands anew.
//
// Nothing is remembered but the time: who is cut is decided when it comes, by
// the picture in force then. A permission that is back by then keeps the
// streams, and one that is taken and given in turns does not put the cut off.

// cutter is the timer of a loop for links with streams that are not allowed.
type cutter struct {
	w     *worker
	timer loop.Timer
}

// review looks at an accepted link after a new picture.
func (l *link) review() {
	g := l.lookup()
	if len(g.instances) == 0 {
		l.retire()
		return
	}
	some, all := g.any()
	if l.admitted && !some {
		// Links of callers that were never allowed stay: to answer each of their
		// requests on a link is cheaper than a handshake for each.
		l.admitted = false
		l.retire()
	}
	if !all && l.count > 0 && l.cutAt == 0 {
		l.cutAt = l.w.loop.Now() + int64(denyGrace)
		l.w.cutter.arm(l.cutAt)
	}
}

// any says whether some and whether all instances are allowed.
func (g *grants) any() (some, all bool) {
	all = true
	for _, ok := range g.allowed {
		some, all = some || ok, all && ok
	}
	return some, all
}

// denied tells whether the picture states the instance and denies it. One that
// it does not state was taken away, and may finish what runs.
func (g *grants) denied(id string) bool {
	for i, in := range g.instances {
		if in.ID == id {
			return !g.allowed[i]
		}
	}
	return false
}

func (c *cutter) arm(at int64) {
	if !c.timer.Armed() {
		c.timer.Owner = c
		c.w.loop.Arm(&c.timer, at)
	}
}

// Expired cuts where it is time, and waits for the next link.
func (c *cutter) Expired(*loop.Timer) {
	now, next := c.w.loop.Now(), int64(0)
	for l := range c.w.allLinks {
		switch {
		case l.cutAt == 0:
		case l.cutAt <= now:
			l.cutAt = 0
			l.cut()
		case next == 0 || l.cutAt < next:
			next = l.cutAt
		}
	}
	if next != 0 {
		c.arm(next)
	}
}

// cut ends the streams of the link that the picture denies.
func (l *link) cut() {
	g, n := l.lookup(), 0
	for _, s := range l.streams {
		if s != nil && s.own.running && g.denied(s.own.inbound.ID) {
			s.own.finish(Denied)
			n++
		}
	}
	if n > 0 {
		l.w.log.Info("cut streams that are not allowed any more", "service", l.service, "peer", l.peer,
			"address", l.remote.String(), "streams", n)
	}
}
