package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"countersign/controller"
	"countersign/controller/config"
)

func (a *app) controller() *cobra.Command {
	c := &cobra.Command{
		Use:   "controller",
		Short: "Run the controller of a member",
		Long: `Run the controller of a member: it steers the member's data planes by
P4Runtime, decides on new sessions, signs, and follows the directory. It runs
until it is interrupted; the data planes keep forwarding without it.`,
		Example: `  countersign policy check /etc/countersign/fw1.yaml
  countersign controller -c /etc/countersign/fw1.yaml --log-format json`,
		Args: cobra.NoArgs,
	}
	path := c.Flags().StringP("config", "c", "", "YAML `FILE` with the configuration")
	metrics := c.Flags().String("metrics", "", "`HOST:PORT` that Prometheus scrapes (default: metrics of FILE)")
	socket := c.Flags().String("admin", "", "admin socket `PATH` (default: admin of FILE)")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if *path == "" {
			return usage("no configuration: give --config FILE")
		}
		cfg, err := config.Load(*path)
		if err != nil {
			return err
		}
		log, err := a.logger()
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("metrics") {
			cfg.Metrics = *metrics
		}
		if cmd.Flags().Changed("admin") {
			cfg.Admin = *socket
		}
		if cfg.Admin != "" {
			if err := os.MkdirAll(filepath.Dir(cfg.Admin), 0o755); err != nil {
				return cfg.At("admin", err)
			}
		}
		registry := newRegistry()
		return withMetrics(cmd.Context(), cfg.Metrics, registry, func(ctx context.Context) error {
			return controller.Run(ctx, controller.Options{Config: cfg, Log: log, Metrics: registry})
		})
	}
	return c
}
