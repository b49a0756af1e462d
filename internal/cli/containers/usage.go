package containers

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"dhow/internal/cli/console"
	"dhow/internal/engine"
	"dhow/internal/image"
	"dhow/internal/lifecycle"
	"dhow/internal/snapshot"
	"dhow/internal/volume"

	"github.com/docker/cli/cli/command/formatter"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/build"
	api "github.com/moby/moby/api/types/container"
	apiimage "github.com/moby/moby/api/types/image"
	apivolume "github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
)

// usageRow is one line of `dhow system df`, named as docker's templates name it.
type usageRow struct{ Active, Reclaimable, Size, TotalCount, Type string }

func newUsageRow(name string, r snapshot.UsageRow) usageRow {
	reclaim := units.HumanSize(float64(r.Reclaimable))
	if r.Size > 0 {
		reclaim += fmt.Sprintf(" (%d%%)", r.Reclaimable*100/r.Size)
	}
	return usageRow{Type: name, TotalCount: strconv.Itoa(r.Count), Active: strconv.Itoa(r.Active), Size: units.HumanSize(float64(r.Size)), Reclaimable: reclaim}
}

func (a *app) dfCommand() *cobra.Command {
	var format string
	var verbose bool
	cmd := &cobra.Command{
		Use: "df [OPTIONS]", Short: "Show disk usage", Args: console.ExactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.WithEngine(cmd.Context(), func(e *engine.Engine) error {
				u, err := measureUsage(cmd.Context(), e)
				if err != nil {
					return err
				}
				if verbose {
					return a.printUsage(u, format)
				}
				table := `{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}`
				return console.Table(a.Console, console.FormatOr(format, false, "", table), map[string]string{
					"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE",
				}, u.rows())
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "Format output using a custom template: 'table', 'json', or a Go template")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return cmd
}

// diskUsage is all that lies in the state directory, one by one.
type diskUsage struct {
	snapshot.Usage
	images     []apiimage.Summary
	containers []api.Summary
	volumes    []apivolume.Volume

	containerRow, volumeRow snapshot.UsageRow
}

func measureUsage(ctx context.Context, e *engine.Engine) (u diskUsage, err error) {
	if u.Usage, err = e.Snapshots.DiskUsage(ctx); err != nil {
		return u, err
	}
	if u.containers, err = lifecycle.New(e).Summaries(ctx, lifecycle.ListOptions{All: true, Sizes: true}); err != nil {
		return u, err
	}
	users := map[string]int64{} // of images
	for _, c := range u.containers {
		users[c.ImageID]++
		u.containerRow.Count++
		u.containerRow.Size += c.SizeRw
		if c.State == api.StateRunning || c.State == api.StatePaused || c.State == api.StateRestarting {
			u.containerRow.Active++
		} else {
			u.containerRow.Reclaimable += c.SizeRw
		}
	}
	if u.images, err = e.Images.List(ctx, image.ListOptions{}); err != nil {
		return u, err
	}
	for i := range u.images {
		img := &u.images[i]
		img.Containers = users[img.ID]
	}
	return u, u.measureVolumes(ctx, volume.New(e.Store))
}

func (u *diskUsage) measureVolumes(ctx context.Context, vs *volume.Volumes) error {
	list, err := vs.List(ctx, nil)
	if err != nil {
		return err
	}
	for _, v := range list {
		size, err := vs.Size(v)
		if err != nil {
			return err
		}
		u.volumeRow.Count++
		u.volumeRow.Size += size
		if len(v.Users) > 0 {
			u.volumeRow.Active++
		} else {
			u.volumeRow.Reclaimable += size
		}
		one := v.API()
		one.UsageData = &apivolume.UsageData{Size: size, RefCount: int64(len(v.Users))}
		u.volumes = append(u.volumes, one)
	}
	return nil
}

func (u *diskUsage) rows() []usageRow {
	return []usageRow{
		newUsageRow("Images", u.Images), newUsageRow("Containers", u.containerRow), newUsageRow("Local Volumes", u.volumeRow),
		newUsageRow("Build Cache", u.Cache), newUsageRow("Cache Mounts", u.CacheMounts), newUsageRow("Blobs", u.Blobs),
	}
}

// printUsage shows everything by docker's tables or a template. Cache mounts are
// in docker's build cache.
func (a *app) printUsage(u diskUsage, format string) error {
	if format == "" {
		format = formatter.TableFormatKey
	}
	ctx := formatter.DiskUsageContext{
		Context: formatter.Context{Format: formatter.NewDiskUsageFormat(format, true)}, Verbose: true,
	}
	ctx.ImageDiskUsage.Items, ctx.ContainerDiskUsage.Items, ctx.VolumeDiskUsage.Items = u.images, u.containers, u.volumes
	for i := range u.images {
		img := &u.images[i]
		img.SharedSize = u.Shared[digest.Digest(img.ID)]
	}
	ctx.BuildCacheDiskUsage.TotalSize = u.Cache.Size + u.CacheMounts.Size
	for _, s := range u.Steps {
		ctx.BuildCacheDiskUsage.Items = append(ctx.BuildCacheDiskUsage.Items, build.CacheRecord{
			ID: s.ID, Type: s.Type, Description: s.Description, Shared: s.Shared, Size: s.Size, CreatedAt: s.Created, LastUsedAt: &s.LastUsed, UsageCount: int(s.Uses),
		})
	}
	for _, m := range u.Mounts {
		ctx.BuildCacheDiskUsage.Items = append(ctx.BuildCacheDiskUsage.Items, build.CacheRecord{
			ID: m.ID, Type: snapshot.TypeMount, Description: m.Name, Size: m.Size, CreatedAt: m.Created, LastUsedAt: &m.LastUsed,
		})
	}
	err := a.Buffered(func(out io.Writer) error {
		ctx.Output = out
		return ctx.Write()
	})
	if err != nil {
		return console.InvalidTemplate(format, err)
	}
	if format == formatter.TableFormatKey {
		fmt.Fprintf(a.Out, "\nBlobs space usage: %s, of which %s are reclaimable\n", units.HumanSize(float64(u.Blobs.Size)), units.HumanSize(float64(u.Blobs.Reclaimable)))
	}
	return nil
}
