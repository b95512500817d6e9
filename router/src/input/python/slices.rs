//! `value[start:stop:step]` with Python's rules for bounds that are negative, absent or outside.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::{containers, invalid};

/// Of anything else, a slice is not defined.
pub fn slice(value: &Value, bounds: &[Value]) -> Result<Value, Error> {
    let bound = |idx: usize| -> Result<Option<i64>, Error> {
        let given = bounds.get(idx).filter(|bound| !bound.is_none());
        given.map(|bound| i64::try_from(bound.clone())).transpose()
    };
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let (Ok(start), Ok(stop), Ok(step)) = (bound(0), bound(1), bound(2)) else {
        return Ok(Value::UNDEFINED);
    };
    if step == Some(0) {
        return Err(invalid("the step of a slice cannot be 0"));
    }
    let picked = |len| indices(start, stop, step.unwrap_or(1), len);
    if let Some(text) = value.as_str() {
        let letters: Vec<char> = text.chars().collect();
        let sliced: String = picked(letters.len()).map(|idx| letters[idx]).collect();
        return Ok(Value::from(sliced));
    }
    let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if !is_list || containers::is_generator(value) || containers::view_name(value).is_some() {
        return Ok(Value::UNDEFINED);
    }
    let items = containers::iterate(value)?;
    let sliced = picked(items.len()).map(|idx| items[idx].clone()).collect();
    Ok(match value.is_tuple() {
        true => Value::from(Tuple::from(sliced)),
        false => containers::list(sliced),
    })
}

/// Which items of `len` a slice takes, in order. `step` is not 0.
pub fn indices(
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
    len: usize,
) -> impl Iterator<Item = usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i64| match bound {
        0.. => bound.min(highest),
        _ => bound.saturating_add(len).max(lowest),
    };
    let (first, end) = if step > 0 {
        (lowest, highest)
    } else {
        (highest, lowest)
    };
    let stop = stop.map_or(end, clamp);
    let mut next = start.map_or(first, clamp);
    std::iter::from_fn(move || {
        let inside = if step > 0 { next < stop } else { next > stop };
        let idx = usize::try_from(next).ok().filter(|_| inside)?;
        next = next.saturating_add(step);
        Some(idx)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picked(start: Option<i64>, stop: Option<i64>, step: i64) -> Vec<usize> {
        indices(start, stop, step, 5).collect()
    }

    #[test]
    fn bounds_count_from_the_end_and_stop_at_it() {
        assert_eq!(picked(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(picked(Some(-2), None, 1), [3, 4]);
        assert_eq!(picked(Some(1), Some(-1), 2), [1, 3]);
        assert_eq!(picked(Some(-9), Some(9), 1), [0, 1, 2, 3, 4]);
        assert!(picked(Some(3), Some(1), 1).is_empty());
        assert_eq!(picked(Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
    }

    #[test]
    fn a_negative_step_goes_back() {
        assert_eq!(picked(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(picked(Some(3), Some(0), -1), [3, 2, 1]);
        assert_eq!(picked(Some(9), Some(-4), -2), [4, 2]);
        assert!(picked(Some(0), Some(5), -1).is_empty());
        assert_eq!(picked(None, None, i64::MIN), [4]);
    }
}
