"""Writes what is generated under deploy/: dashboards, and the PrometheusRule of the alerts."""

from __future__ import annotations

from deploy.dashboards.files import generated_files


def main() -> None:
    for path, text in generated_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
