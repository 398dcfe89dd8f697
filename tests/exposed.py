"""What a process shows to Prometheus, as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families


def samples(text):
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def sample_sum(metrics, name, **labels):
    """The sum of a metric over all its labels, or over those with the given ones."""
    found = samples(metrics.render().decode())
    return sum(sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items())
