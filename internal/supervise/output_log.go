package supervise

import (
	"path/filepath"

	"dhow/internal/container"
	"dhow/internal/logs"
)

// LogsDir is where a container's log is, in its directory.
func LogsDir(dir string) string { return filepath.Join(dir, "logs") }

// logDrivers are the record's destinations in package logs' words.
func logDrivers(rec *container.Record) []logs.Driver {
	var list []logs.Driver
	for _, d := range rec.Logs {
		list = append(list, logs.Driver{Name: d.Name, Options: d.Options})
	}
	return list
}

// openLog opens the container's log, once for all its runs.
func (s *supervisor) openLog(rec *container.Record) error {
	if s.log != nil {
		return nil
	}
	info := logs.Info{
		ContainerID: rec.ID, ContainerName: "/" + rec.Name, ContainerImageID: rec.Image.String(), ContainerImageName: rec.Config.Image,
		ContainerCreated: rec.Created, ContainerEnv: rec.Config.Env, ContainerLabels: rec.Config.Labels, DaemonName: "dhow",
	}
	if command := rec.Command(); len(command) > 0 {
		info.ContainerEntrypoint, info.ContainerArgs = command[0], command[1:]
	}
	var err error
	s.log, err = logs.Open(LogsDir(s.dir), logs.Config{Drivers: logDrivers(rec), Info: info})
	return err
}
