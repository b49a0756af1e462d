// Package stage is the container-side half of sandbox.
package stage
