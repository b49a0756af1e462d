package gcplogs

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"dhow/internal/logs/driver"

	"golang.org/x/oauth2/clientcredentials"
)

// A key that was taken back parks the destination; a token endpoint that is busy
// does not.
func TestTokenError(t *testing.T) {
	for code, parked := range map[int]bool{
		http.StatusBadRequest: true, http.StatusUnauthorized: true, http.StatusTooManyRequests: false, http.StatusServiceUnavailable: false,
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(code)
				fmt.Fprint(w, `{"error":"invalid_grant"}`)
			}))
			defer endpoint.Close()
			c := clientcredentials.Config{TokenURL: endpoint.URL, ClientID: "i", ClientSecret: "s"}
			s := &sender{project: "p", looked: true, tokens: c.TokenSource(context.Background())}
			if _, err := s.Send(t.Context(), []driver.Record{{}}); driver.IsRefused(err) != parked {
				t.Errorf("got %v", err)
			}
		})
	}
}
