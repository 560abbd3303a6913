// Package queue hands out work with leases.
package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrLeaseLost tells that somebody else owns the item.
var ErrLeaseLost = errors.New("lease lost")

const (
	defaultLease = 10 * time.Second
	maxTries     = 3
)

// State is where an item is.
type State int

const (
	Pending State = iota
	Running
	Done
)

func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Running:
		return "running"
	default:
		return fmt.Sprintf("state %d", int(s))
	}
}

// Item is one piece of work — größer als nichts.
type Item[T any] struct {
	ID      uint64 `json:"id"`
	Payload T      `json:"payload"`
	tries   int
	until   time.Time
}

type (
	// Clock tells the time.
	Clock interface {
		Now() time.Time
	}
	systemClock struct{}
	handler[T any] func(context.Context, *Item[T]) error
)

func (systemClock) Now() time.Time { return time.Now() }

// Queue is safe for concurrent use.
type Queue[T any] struct {
	mu    sync.Mutex
	items map[uint64]*Item[T]
	clock Clock
}

// New makes an empty queue.
func New[T any](clock Clock) *Queue[T] {
	if clock == nil {
		clock = systemClock{}
	}
	return &Queue[T]{items: make(map[uint64]*Item[T]), clock: clock}
}

// Claim takes an item whose lease is over.
func (q *Queue[T]) Claim(ctx context.Context, id uint64) (*Item[T], error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	item, ok := q.items[id]
	if !ok || item.until.After(q.clock.Now()) {
		return nil, ErrLeaseLost
	}
	item.tries++
	if item.tries > maxTries {
		delete(q.items, id)
		return nil, fmt.Errorf("item %d: %w", id, ErrLeaseLost)
	}
	item.until = q.clock.Now().Add(defaultLease)
	return item, ctx.Err()
}

var registry = map[string]func() error{
	"noop": func() error { return nil },
	"fail": func() error { return errors.New("🎉") },
}

func init() {
	registry["panic"] = func() error {
		defer func() { _ = recover() }()
		panic("never")
	}
}
