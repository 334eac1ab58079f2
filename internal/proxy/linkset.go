package proxy

// linkSet holds the links of one loop to one target, and the exchanges that
// wait for the first of them.
type linkSet struct {
	w       *worker
	target  *target
	links   []*link
	dialing bool
	waiting []*exchange

	loggedAt int64 // loop time of the last log line about a failed dial
	unlogged int   // failures since
}

// best returns an open link with room for another stream, or nil. When all
// carry much, it has another one opened for those who come later.
func (s *linkSet) best() *link {
	var best *link
	for _, l := range s.links {
		if !l.goaway && l.carried < linkBytes && (best == nil || l.count < best.count) {
			best = l
		}
	}
	if best == nil {
		return nil
	}
	if best.count >= streamsPerLink && len(s.links) < maxLinksPerTarget {
		s.dial(nil)
	}
	if best.count >= maxStreamsPerLink {
		return nil
	}
	return best
}

// full tells, of a set without a best link, that it may have no more of them.
func (s *linkSet) full() bool {
	n := 0
	for _, l := range s.links {
		if !l.goaway && l.carried < linkBytes {
			n++
		}
	}
	return n >= maxLinksPerTarget
}

// join queues x until a link is there.
func (s *linkSet) join(x *exchange) {
	x.waiting = s
	s.waiting = append(s.waiting, x)
	s.dial(x)
}

// leave takes x out of the queue.
func (s *linkSet) leave(x *exchange) {
	for i, o := range s.waiting {
		if o == x {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			break
		}
	}
	x.waiting = nil
	x.use.pending.Add(-1)
}

// dial has a link opened unless one is on its way. x, if given, says how long
// that may take.
func (s *linkSet) dial(x *exchange) {
	if s.dialing || s.w.ended {
		return
	}
	s.dialing = true
	limit := dialTimeout
	if x != nil && x.plan.ConnectTimeout > 0 {
		limit = x.plan.ConnectTimeout
	}
	s.w.p.dial(s, limit)
}

// arrived is run on the loop when a dial has ended: either l or o says how.
func (s *linkSet) arrived(l *link, o Outcome, why string) {
	s.dialing = false
	if l == nil && !s.w.ended {
		s.complain(o, why)
	}
	if l != nil {
		l.set = s
		s.links = append(s.links, l)
	}
	// Those who try again may join this set anew; they wait for the next dial.
	waiting := s.waiting
	s.waiting = nil
	for i, x := range waiting {
		x.waiting = nil
		x.use.pending.Add(-1)
		switch {
		case l != nil && !l.closed && l.count < maxStreamsPerLink:
			x.send(l)
		case l != nil:
			x.wait(x.ep)
		default:
			x.ep.st.lastErr.Store(&why)
			x.linkFailed(o)
		}
		waiting[i] = nil
	}
	// The target may have left the picture while the link was made.
	if l != nil && (s.w.draining || s.w.pic.targets[s.target.targetKey] != s.target) {
		l.retire()
	}
}

// complain logs a failed dial. Without a certificate or with a breaker that is
// off every request dials anew, so not every failure gets a line.
func (s *linkSet) complain(o Outcome, why string) {
	now := s.w.loop.Now()
	if s.loggedAt != 0 && now-s.loggedAt < int64(dialLogEvery) {
		s.unlogged++
		return
	}
	s.w.log.Warn("cannot link to peer", "service", s.target.service, "address", s.target.address.String(),
		"caller", s.target.caller, "outcome", o.String(), "error", why, "unlogged", s.unlogged)
	s.loggedAt, s.unlogged = now, 0
}

func (s *linkSet) remove(l *link) {
	for i, o := range s.links {
		if o == l {
			s.links = append(s.links[:i], s.links[i+1:]...)
			return
		}
	}
}
