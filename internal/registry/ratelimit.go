package registry

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdef"
)

// tooMany is the error of an answer 429, with the limit as far as the registry
// tells it.
func tooMany(resp *http.Response, what string, now time.Time) error {
	err := wrap(what, answer(resp))
	if limit := rateLimit(resp.Header, now); limit != "" {
		err = fmt.Errorf("%w (%s)", err, limit)
	}
	return &temporary{
		error: errdef.WithHint(errdef.As(errdef.ErrUnavailable, err), "many registries allow more to those who log in: dhow login %s", resp.Request.URL.Host),
		after: retryAfter(resp.Header.Get("Retry-After"), now),
	}
}

// rateLimit words the headers that registries tell their limits with: Docker
// Hub's "RateLimit-Limit: 100;w=21600" (seconds), and the reset of the IETF's
// draft (draft-ietf-httpapi-ratelimit-headers-07) or of a "Retry-After".
func rateLimit(h http.Header, now time.Time) string {
	var parts []string
	if count, window := limitOf(h.Get("RateLimit-Limit")); count != "" {
		text := "the limit is " + count + " requests"
		if window > 0 {
			text += " in " + window.String()
		}
		parts = append(parts, text)
	}
	if count, _ := limitOf(h.Get("RateLimit-Remaining")); count != "" {
		parts = append(parts, count+" left")
	}
	if source := h.Get("Docker-RateLimit-Source"); source != "" {
		parts = append(parts, "counted for "+source)
	}
	reset := retryAfter(h.Get("RateLimit-Reset"), now)
	if reset == 0 {
		reset = retryAfter(h.Get("Retry-After"), now)
	}
	if reset > 0 {
		parts = append(parts, "it resets at "+now.Add(reset).Format(time.TimeOnly)+", in "+reset.Round(time.Second).String())
	}
	return strings.Join(parts, ", ")
}

// limitOf reads "100;w=21600".
func limitOf(s string) (count string, window time.Duration) {
	count, params, _ := strings.Cut(s, ";")
	if _, err := strconv.ParseUint(count, 10, 63); err != nil {
		return "", 0
	}
	for param := range strings.SplitSeq(params, ";") {
		value, ok := strings.CutPrefix(strings.TrimSpace(param), "w=")
		if seconds, err := strconv.ParseUint(value, 10, 31); ok && err == nil {
			window = time.Duration(seconds) * time.Second
		}
	}
	return count, window
}
