package driver

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"math"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"dhow/internal/errdef"
)

// Options are a driver's options as --log-opt gave them.
type Options map[string]string

// CheckOptions returns an ErrInvalid error when an option is unknown to the kind or has
// a value that its check refuses. It names the driver and the option.
func (k Kind) CheckOptions(name string, o Options) error {
	for _, key := range slices.Sorted(maps.Keys(o)) {
		check, known := k.Options[key]
		if !known && k.Any {
			continue
		}
		if !known {
			err := errdef.New(errdef.ErrInvalid, "unknown log opt %q for %s log driver", key, name)
			return errdef.WithHint(err, "it takes %s", strings.Join(slices.Sorted(maps.Keys(k.Options)), ", "))
		}
		if check == nil {
			continue
		}
		if err := check(o[key]); err != nil {
			return errdef.New(errdef.ErrInvalid, "log opt %s=%s of %s: %w", key, o[key], name, err)
		}
	}
	if k.Check != nil {
		if err := k.Check(o); err != nil {
			return errdef.New(errdef.ErrInvalid, "log opts of %s: %w", name, err)
		}
	}
	return nil
}

// Or returns the option's value, or otherwise when it is not set or empty.
func (o Options) Or(key, otherwise string) string {
	if v := o[key]; v != "" {
		return v
	}
	return otherwise
}

// Bool returns a checked boolean option; false when it is not set.
func (o Options) Bool(key string) bool {
	v, _ := strconv.ParseBool(o[key])
	return v
}

// Int returns a checked number, or otherwise when it is not set.
func (o Options) Int(key string, otherwise int) int {
	if n, err := strconv.Atoi(o[key]); err == nil {
		return n
	}
	return otherwise
}

// Size returns a checked size in bytes (20m is 20,000,000), or otherwise when it
// is not set. -1 is math.MaxInt64: no limit.
func (o Options) Size(key string, otherwise int64) int64 {
	if o[key] == "-1" {
		return math.MaxInt64
	}
	if n, err := units.FromHumanSize(o[key]); err == nil {
		return n
	}
	return otherwise
}

// Memory returns a checked size in units of 1024, or otherwise when it is not set.
func (o Options) Memory(key string, otherwise int64) int64 {
	if n, err := units.RAMInBytes(o[key]); err == nil {
		return n
	}
	return otherwise
}

// Duration returns a checked duration, or otherwise when it is not set.
func (o Options) Duration(key string, otherwise time.Duration) time.Duration {
	if d, err := time.ParseDuration(o[key]); err == nil {
		return d
	}
	return otherwise
}

// Rate returns a checked rate in bytes a second; 0 when it is not set.
func (o Options) Rate(key string) int64 {
	n, _ := parseRate(o[key])
	return n
}

// parseRate reads "1MB/s", "500k" or "100k/s".
func parseRate(v string) (int64, error) {
	n, err := units.FromHumanSize(strings.TrimSuffix(v, "/s"))
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("want bytes a second, such as 1MB/s")
	}
	return n, nil
}

// Boolean checks for what strconv.ParseBool takes.
func Boolean(v string) error {
	if _, err := strconv.ParseBool(v); err != nil {
		return fmt.Errorf("want true or false")
	}
	return nil
}

// Number checks for a number within the bounds, which count.
func Number(low, high int) func(string) error {
	return func(v string) error {
		n, err := strconv.Atoi(v)
		switch {
		case err != nil:
			return fmt.Errorf("want a number")
		case (n < low || n > high) && high == math.MaxInt:
			return fmt.Errorf("want a number of at least %d", low)
		case n < low || n > high:
			return fmt.Errorf("want a number from %d to %d", low, high)
		}
		return nil
	}
}

// Bytes checks for a size above zero, or -1 for none.
func Bytes(v string) error {
	if n, err := units.FromHumanSize(v); v != "-1" && (err != nil || n <= 0) {
		return fmt.Errorf("want a size above zero, such as 20m")
	}
	return nil
}

// Memory checks for a size in units of 1024 within the bounds, which count.
func Memory(low, high int64) func(string) error {
	return func(v string) error {
		n, err := units.RAMInBytes(v)
		switch {
		case err != nil || n < 0:
			return fmt.Errorf("want a size, such as 512k or 1m")
		case n < low || n > high:
			return fmt.Errorf("want a size from %s to %s", units.BytesSize(float64(low)), units.BytesSize(float64(high)))
		}
		return nil
	}
}

// Period checks for a duration that is not negative.
func Period(v string) error {
	if d, err := time.ParseDuration(v); err != nil || d < 0 {
		return fmt.Errorf("want a duration, such as 500ms or 10s")
	}
	return nil
}

// OneOf checks for one of the words.
func OneOf(words ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("want one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}

// Pattern checks for a regular expression.
func Pattern(v string) error {
	_, err := regexp.Compile(v)
	return err
}

// Describing returns the options that say what is known of a container, which
// most drivers take (tag, labels, labels-regex, env, env-regex), together with
// the driver's own.
func Describing(own map[string]func(string) error) map[string]func(string) error {
	all := map[string]func(string) error{
		"tag":          CheckTag,
		"labels":       nil,
		"labels-regex": Pattern,
		"env":          nil,
		"env-regex":    Pattern,
	}
	maps.Copy(all, own)
	return all
}

// StoreOptions are those of the local store when it is a driver of its own.
func StoreOptions() map[string]func(string) error {
	return map[string]func(string) error{"max-size": Bytes, "max-file": Number(1, math.MaxInt), "compress": Boolean}
}

// CacheOptions are those of the local store beside a driver that ships.
func CacheOptions() map[string]func(string) error {
	all := map[string]func(string) error{"cache-disabled": Boolean}
	for key, check := range StoreOptions() {
		all["cache-"+key] = check
	}
	return all
}

// Bounds of option max-line, in bytes. Less than a part of a json-file could not be
// told from one; more does not fit into an entry of the compact format.
const (
	ShortestMaxLine = 16 << 10
	LongestMaxLine  = 16<<20 - 1<<10
)

// What is done with lines that come faster than option rate allows (rate-policy).
const (
	RateBlock      = "block"       // the container waits
	RateDropOldest = "drop-oldest" // lines wait for a second's worth, then the oldest go
	RateSample     = "sample"      // every n-th line is kept
)

// SharedOptions are understood with every driver.
func SharedOptions() map[string]func(string) error {
	return map[string]func(string) error{
		"mode":            OneOf("blocking", "non-blocking"),
		"max-buffer-size": Memory(0, math.MaxInt64),
		"max-line":        Memory(ShortestMaxLine, LongestMaxLine),
		"linger":          Period,
		"rate":            func(v string) error { _, err := parseRate(v); return err },
		"rate-policy":     OneOf(RateBlock, RateDropOldest, RateSample),
	}
}

// TLSFiles makes a client configuration from files in PEM: the authorities to
// trust besides the machine's (instead of them, if ca is set), and a certificate
// with its key. Empty names are left out.
func TLSFiles(ca, cert, key string, skipVerify bool) (*tls.Config, error) {
	config := &tls.Config{InsecureSkipVerify: skipVerify, MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in PEM", ca)
		}
	}
	if (cert == "") != (key == "") {
		return nil, fmt.Errorf("a client certificate needs both its file and its key's")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// parseRetryAfter reads a Retry-After header: seconds or a date (RFC 9110,
// section 10.2.3); 0 when there is none.
func parseRetryAfter(v string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
