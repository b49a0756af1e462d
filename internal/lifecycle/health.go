package lifecycle

import (
	"maps"

	"dhow/internal/container"
	"dhow/internal/health"

	dockertypes "github.com/moby/moby/api/types/container"
)

// mergeHealth decides the health check of a container that is created: of the
// user, of labels, of the image.
func mergeHealth(rec *container.Record, image *dockertypes.HealthConfig, imageLabels map[string]string) (err error) {
	labels := maps.Clone(imageLabels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, rec.Config.Labels)
	rec.Config.Healthcheck, err = health.Merge(rec.Config.Healthcheck, image, labels, &rec.Health, &rec.Restart)
	return err
}

// checkHealth refuses a health check or ready check that could not be carried
// out.
func checkHealth(rec *container.Record) error {
	if _, err := health.Decide(rec.Config.Healthcheck, rec.Config.Shell, rec.Health); err != nil {
		return err
	}
	if rec.Health.Ready == nil {
		return nil
	}
	_, err := health.DecideReady(*rec.Health.Ready, rec.Config.Shell)
	return err
}
