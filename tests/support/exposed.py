"""Reads the metrics of a process as Prometheus does."""

from prometheus_client.parser import text_string_to_metric_families


def samples(text):
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def sample_sum(metrics, name, **labels):
    """Returns the sum of a metric over all samples with the given labels."""
    found = samples(metrics.render().decode())
    return sum(sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items())
